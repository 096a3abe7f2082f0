"""Signal handling of the fork server, the only process that imports this module.

A scheduler may signal every process of a job. The fork server must survive SIGTERM until its children have saved their
state because it reports their exit statuses to the runner. It ends when the runner and all jobs have ended.
"""

import signal

signal.signal(signal.SIGTERM, signal.SIG_IGN)
