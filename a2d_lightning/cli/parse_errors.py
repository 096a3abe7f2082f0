"""One-line summaries of jsonargparse's errors, which list every attempted type over many lines."""

import difflib
import re
from collections.abc import Sequence

ELSEWHERE = {
    "model.target_macs": (
        "limit the MACs of the derived network with model.derivation MaxAlphaUnderMacs and its target_macs."
    ),
    "model.tau": ("a callback anneals tau: set trainer.callbacks.TemperatureAnnealing.initial, decay and num_decays."),
    "trainer.gradient_clip_val": "the norm of the weights' gradient is clipped by model.gradient_clip_norm.",
    "trainer.gradient_clip_algorithm": "the norm of the weights' gradient is clipped by model.gradient_clip_norm.",
}
"""Settings that users of Lightning or readers of the paper expect, and their equivalents here."""

LIGHTNINGS_OWN = {
    "gradient clipping is not supported for manual optimization": (
        f"trainer.gradient_clip_val: {ELSEWHERE['trainer.gradient_clip_val']}"
    ),
    "('cannot represent an object', <Interval.": (
        "trainer.callbacks: Timer cannot be written into config.yaml; add --trainer.callbacks.interval step."
    ),
}
"""Parts of library errors that suggest no remedy, and the line to print instead."""

NO_MODEL = (
    "--config: a stage is required, configs/teacher.yaml, configs/search.yaml or configs/retrain.yaml, or a --model; "
    "overlays come after it."
)


def one_line(message: str, known_settings: Sequence[str]) -> str:
    """Extract the innermost reason of an error, with close matches for an unknown key.

    Args:
        message: Error message. Messages that come from neither a parser key nor a known pattern keep their words.
        known_settings: Dotted names (``data.game``) from which to suggest close matches.

    Returns:
        The reason in one line.
    """
    text = " ".join(message.split())
    if re.fullmatch(r"the following arguments are required: \w+\.model", text):
        return NO_MODEL
    for words, line in LIGHTNINGS_OWN.items():
        if words in text:
            return line
    unrecognized = re.search(r"[Uu]nrecognized arguments: --?(\S+?)(?:[= ].*)?$", text)
    if unrecognized:
        return _unknown(unrecognized[1], known_settings)
    key = re.search(r"(?:Group|Key|Option) '([\w.]+)' (?:does not exist|is not (?:accepted|expected))", text)
    outer = re.search(r'Parser key "(\w+)"', text)
    key = key or re.search(r"does not accept option '([\w.]+)'", text)
    if key:
        name = key[1] if "." in key[1] or not outer else f"{outer[1]}.{key[1]}"
        return _unknown(name, known_settings)
    if "Parser key" not in text:
        return text
    # 'Parser key "model": ... Parser key "distillation": Expected a Literal[...]. Got value: foo - Expected ...'
    keys = re.findall(r'Parser key "([\w.]+)"', text)
    reason = text.rsplit(f'Parser key "{keys[-1]}":', 1)[-1] if keys else text
    reason = re.sub(r"Does not validate against any of the Union subtypes.*?Errors:", "", reason)
    reason = re.sub(r"- Expected a path but \S+ either not accessible or invalid", "", reason)
    reason = re.split(r" - Expected a <class 'NoneType'>| Given value type:", reason)[0].strip(" -")
    value = re.search(r"Given value: (?:NestedArg\(key='[\w.]+', val=)?'?([^')]*)", text)
    given = value[1] if value else ""
    told = given.startswith("Namespace(") or "Got value" in reason
    if given and not told and not re.search(rf"(?<![\w.]){re.escape(given)}(?![\w.])", reason):
        reason = f"{reason} (given: {given})"
    if wanted := re.fullmatch(r"Expected a <class 'list'>\. Got value: (.+)", reason):
        reason = f"{wanted[1]} is not a list; write [a,b], without spaces."
    return f"{'.'.join(keys)}: {reason}"


def _unknown(name: str, known_settings: Sequence[str]) -> str:
    name = name.replace(".init_args", "")
    if name in ELSEWHERE:
        return f"{name}: there is no such setting; {ELSEWHERE[name]}"
    near = difflib.get_close_matches(name, known_settings, n=2, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else "`python -m a2d_lightning fit --help` lists the settings."
    return f"{name}: there is no such setting; {hint}"
