"""Web pages without what only browsers need: comments, scripts, styles, drawings and styling attributes.

The regular expressions never search for an end that may be missing: a page of ten thousand unclosed comments takes one pass,
like any other.
"""

import re

_INVISIBLE = re.compile(r"<(script|style|svg|noscript|template|iframe|canvas)\b", re.IGNORECASE)
_TAG = re.compile(r"<(/?)([A-Za-z][\w:-]*)((?:\s[^<>]*)?)>")
_TAG_WITH_ATTRIBUTES = re.compile(r"<([A-Za-z][\w:-]*)(\s[^<>]*)>")
_ATTRIBUTE = re.compile(r"""(?<![\w:-])([\w:-]+)\s*=\s*("[^"]*"|'[^']*'|[^\s"'>]+)""")
_KEPT_ATTRIBUTES = frozenset(
    {
        "href",
        "src",
        "alt",
        "title",
        "name",
        "id",
        "value",
        "type",
        "content",
        "placeholder",
        "for",
        "action",
        "datetime",
    }
)
_BLOCK = frozenset(
    {"p", "div", "section", "article", "li", "ul", "ol", "tr", "table", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6"}
    | {"header", "footer", "main", "nav", "dt", "dd", "pre", "blockquote", "option", "form", "title"}
)
_USELESS_WITHOUT_ATTRIBUTES = frozenset({"meta", "link", "col", "img", "input", "source"})
_BETWEEN_TAGS = re.compile(r">\s+<")
_INLINE_SPACES = re.compile(r"[ \t]{2,}")
_PREFORMATTED = re.compile(r"<(?:pre|textarea)\b", re.IGNORECASE)  # white space is significant inside
_ROUNDS_MAX = 4


def without_noise(page: str, *, keep_tags: bool) -> str:
    """The page's content with its structure (`keep_tags`), or only its text, with links in parentheses.

    Removing a comment can form a new one from the text around it. A page that still changes after four rounds was made to do
    so, and is returned unchanged.
    """
    result = page
    for _ in range(_ROUNDS_MAX):
        cleaned = _clean_once(result, keep_tags)
        if cleaned == result:
            return result
        result = cleaned
    return page


def _clean_once(page: str, keep_tags: bool) -> str:
    page = _without_invisible(_without_comments(page))
    if "&nbsp;" in page:
        page = page.replace("&nbsp;", " ")
    is_preformatted = bool(_PREFORMATTED.search(page))
    if "  " in page and not is_preformatted:
        page = _INLINE_SPACES.sub(" ", page)
    if not keep_tags:
        text = _TAG.sub(_tag_as_text, page)
        return text if is_preformatted else "\n".join([line for line in text.split("\n") if line.strip()])
    page = _TAG_WITH_ATTRIBUTES.sub(_slim_tag, page)
    return page if is_preformatted else _BETWEEN_TAGS.sub(_one_separator, page)


def _without_comments(page: str) -> str:
    parts = []
    position = 0
    while (start := page.find("<!--", position)) >= 0:
        end = page.find("-->", start + 4)
        if end < 0:
            break
        parts.append(page[position:start])
        position = end + 3
    parts.append(page[position:])
    return "".join(parts)


def _without_invisible(page: str) -> str:
    """Remove elements that are not read, from opening to closing tag; those never closed are left."""
    parts = []
    position = 0
    unclosed: set[str] = set()
    for match in _INVISIBLE.finditer(page):
        name = match[1].lower()
        if match.start() < position or name in unclosed:
            continue
        closing = re.compile(rf"</{name}\s*>", re.IGNORECASE).search(page, match.end())
        if closing is None:
            unclosed.add(name)
            continue
        parts.append(page[position : match.start()])
        position = closing.end()
    parts.append(page[position:])
    return "".join(parts)


def _one_separator(between: re.Match[str]) -> str:
    return ">\n<" if "\n" in between[0] else "> <"


def _slim_tag(tag: re.Match[str]) -> str:
    attributes = [
        f"{name}={value}"
        for name, value in _ATTRIBUTE.findall(tag[2])
        if name.lower() in _KEPT_ATTRIBUTES and value[1:6].lower() != "data:"
    ]
    if not attributes and tag[1].lower() in _USELESS_WITHOUT_ATTRIBUTES:
        return ""
    return f"<{' '.join([tag[1], *attributes])}>"


def _tag_as_text(tag: re.Match[str]) -> str:
    name = tag[2].lower()
    if name == "a" and not tag[1]:
        href = next((value.strip("\"'") for key, value in _ATTRIBUTE.findall(tag[3]) if key.lower() == "href"), "")
        return f"({href}) " if href and href[0] not in "#j" else ""
    if name in ("td", "th"):
        return " | " if tag[1] else ""
    return "\n" if name in _BLOCK else ""
