"""Leave out what is secret in a text that is printed or written."""

import re

_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*:/{1,2}"  # one slash, as pathlib makes of two
# A name and a password end at an "@"; a secret of AWS may hold slashes, a port is none.
_USER = re.compile(rf"({_SCHEME})(?:[^/\s]*@|[^/\s:@]*:(?!\d*/)\S*@)")
_SECRET = r"secret|password|passwd|token|signature|credential|access_?key|api_?key"
_QUERY = re.compile(rf"([?&][^=&\s]*(?:{_SECRET})[^=&\s]*=)[^&\s'\"]+", re.IGNORECASE)


def without_passwords(text: str) -> str:
    """The text with ``...`` for names, passwords and keys in its URLs, whatever their scheme."""
    return _QUERY.sub(r"\1...", _USER.sub(r"\1...@", text))
