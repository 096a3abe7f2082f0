"""Imported by the fork server only, never by the program itself.

A scheduler may signal every process of a job. The fork server must survive SIGTERM until its children have saved,
because it passes on their exit statuses; it ends when the runner and all jobs have ended.
"""

import signal

signal.signal(signal.SIGTERM, signal.SIG_IGN)
