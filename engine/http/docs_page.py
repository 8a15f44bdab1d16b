"""The OpenAPI document as a page: plain HTML that loads nothing and runs nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from typing import Any, Final

from engine.http.idempotency import HEADER
from engine.http.openapi import Document

EXAMPLE_ADDRESS: Final = "http://localhost:8080"
"""Stands in the examples, until the page is served at an address of its own."""

_STYLE: Final = """
:root{--ink:#1d2433;--soft:#5b6478;--line:#dfe3ea;--ground:#fff;--panel:#f6f7f9;--mark:#2f5bd7}
@media(prefers-color-scheme:dark){:root{--ink:#e4e8f0;--soft:#9aa4b8;--line:#333b4a;
--ground:#151922;--panel:#1d2330;--mark:#86a6ff}}
*{box-sizing:border-box}
body{margin:0;color:var(--ink);background:var(--ground);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
.frame{display:grid;grid-template-columns:17rem minmax(0,1fr);max-width:84rem;margin:auto}
nav{position:sticky;top:0;height:100vh;overflow:auto;padding:1.5rem 1rem 3rem;
border-right:1px solid var(--line);font-size:13px}
nav h2{font-size:11px;text-transform:uppercase;letter-spacing:.08em;color:var(--soft);
margin:1.4rem 0 .3rem;border:0;padding:0}
nav a{display:block;padding:.12rem 0;color:var(--ink);text-decoration:none}
nav a:hover{color:var(--mark)}
main{padding:2rem 2.5rem 6rem}
h1{font-size:1.7rem;margin:0 0 .5rem}
h2{font-size:1.3rem;margin:3rem 0 .3rem;border-top:1px solid var(--line);padding-top:1.5rem}
h3{font-size:1.02rem;margin:0}
h4{font-size:.78rem;text-transform:uppercase;letter-spacing:.06em;color:var(--soft);
margin:1.1rem 0 .3rem}
article{border:1px solid var(--line);border-radius:8px;margin:1rem 0;padding:1rem 1.2rem}
article:target{border-color:var(--mark)}
code,pre{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{background:var(--panel);border-radius:6px;padding:.7rem .9rem;overflow:auto;margin:.3rem 0}
p{margin:.3rem 0}
a{color:var(--mark)}
.verb{display:inline-block;min-width:3.2rem;text-align:center;border-radius:4px;color:#fff;
font:600 11px/1.7 ui-monospace,monospace;margin-right:.5rem}
.get{background:#2a7d4f}.post{background:#2f5bd7}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%}
td{border-top:1px solid var(--line);padding:.3rem .8rem .3rem 0;vertical-align:top}
td:first-child{white-space:nowrap}
.soft{color:var(--soft)}
@media(max-width:50rem){.frame{display:block}nav{position:static;height:auto;border:0}
main{padding:1rem}}
"""


def docs_page(document: Document) -> bytes:
    """The page of a document that `openapi_document` made."""
    info = document["info"]
    by_tag: dict[str, list[tuple[str, str, dict[str, Any]]]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            by_tag.setdefault(operation["tags"][0], []).append((method, path, operation))
    nav = [f"<h1>{escape(info['title'])}</h1>"]
    main = [
        f"<h1>{escape(info['title'])} <span class=soft>{escape(info['version'])}</span></h1>",
        f"<p>{_prose(info['description'])}</p>",
        '<p>The same as a document: <a href="/openapi.json">openapi.json</a>.</p>',
    ]
    for tag in document["tags"]:
        nav.append(f"<h2>{escape(tag['name'])}</h2>")
        main.append(f"<h2>{escape(tag['name'])}</h2><p>{_prose(tag['description'])}</p>")
        for method, path, operation in by_tag[tag["name"]]:
            name = escape(operation["operationId"])
            nav.append(f'<a href="#{name}">{escape(operation["summary"])}</a>')
            main.append(_operation(document, method, path, operation))
    nav.append("<h2>Schemas</h2>")
    main.append("<h2>Schemas</h2>")
    for name, schema in document["components"]["schemas"].items():
        nav.append(f'<a href="#schema-{escape(name)}">{escape(name)}</a>')
        main.append(_schema(name, schema))
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head>"
        f'<body><div class="frame"><nav>{"".join(nav)}</nav><main>{"".join(main)}</main></div>'
        "</body></html>"
    )
    return page.encode()


def _operation(document: Document, method: str, path: str, operation: dict[str, Any]) -> str:
    parts = [
        f'<article id="{escape(operation["operationId"])}">',
        f'<h3><span class="verb {method}">{method.upper()}</span><code>{escape(path)}</code></h3>',
        f"<p>{escape(operation['summary'])}. {_prose(operation.get('description', ''))}</p>",
    ]
    parameters = [_resolved(document, one) for one in operation.get("parameters", ())]
    if parameters:
        parts.append("<h4>Parameters</h4>")
        parts.append(
            _table(
                (
                    f"<code>{escape(one['name'])}</code>",
                    f"<span class=soft>{one['in']}{', required' if one['required'] else ''}</span>"
                    f" {_type(one['schema'])}",
                    _prose(one.get("description", "")),
                )
                for one in parameters
            )
        )
    for content_type, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<h4>Body</h4><p>{_type(content['schema'])} as {escape(content_type)}</p>")
        if "example" in content:
            parts.append(f"<pre>{escape(_curl(path, operation, content['example']))}</pre>")
    parts.append("<h4>Answers</h4>")
    parts.append(
        _table(
            (
                f"<code>{status}</code>",
                ", ".join(_answer_type(one) for one in answer["content"].values()),
                _prose(answer["description"]),
            )
            for status, answer in operation["responses"].items()
        )
    )
    parts.append("</article>")
    return "".join(parts)


def _answer_type(content: dict[str, Any]) -> str:
    schema = content["schema"]
    return _type(schema["allOf"][0] if "allOf" in schema else schema)


def _curl(path: str, operation: dict[str, Any], example: Any) -> str:
    """A command that works against the simulator."""
    takes_key = any(one.get("name") == HEADER for one in operation.get("parameters", ()))
    key = f'  -H "{HEADER}: {operation["operationId"]}-1" \\\n' if takes_key else ""
    return (
        f"curl {EXAMPLE_ADDRESS}{path} \\\n"
        '  -H "Authorization: Bearer $API_KEY" \\\n'
        f"{key}"
        '  -H "Content-Type: application/json" \\\n'
        f"  -d '{json.dumps(example)}'"
    )


def _schema(name: str, schema: dict[str, Any]) -> str:
    required = set(schema.get("required", ()))
    rows = (
        (
            f"<code>{escape(field)}</code>",
            _type(part) + ("" if field in required else " <span class=soft>optional</span>"),
            _prose(_description(part)),
        )
        for field, part in schema.get("properties", {}).items()
    )
    return (
        f'<article id="schema-{escape(name)}"><h3>{escape(name)}</h3>'
        f"<p>{_prose(schema.get('description', ''))}</p>{_table(rows)}</article>"
    )


def _description(schema: dict[str, Any]) -> str:
    found = [schema, *schema.get("anyOf", ())]
    return next((str(one["description"]) for one in found if "description" in one), "")


def _type(schema: dict[str, Any]) -> str:
    """A schema in a few words, with a link where it has a name."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#schema-{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"<code>{escape(str(one))}</code>" for one in schema["enum"])
    if "const" in schema:
        return f"<code>{escape(str(schema['const']))}</code>"
    if schema.get("type") == "array":
        return f"array of {_type(schema.get('items', {}))}"
    kind = schema.get("type", "any")
    return escape(schema.get("format") or (" or ".join(kind) if isinstance(kind, list) else kind))


def _resolved(document: Document, parameter: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in parameter:
        return parameter
    name = parameter["$ref"].rpartition("/")[2]
    found: dict[str, Any] = document["components"]["parameters"][name]
    return found


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table>{lines}</table></div>' if lines else ""


def _prose(text: str) -> str:
    """Text with `code` in it, as HTML."""
    return "".join(
        f"<code>{escape(part)}</code>" if at % 2 else escape(part)
        for at, part in enumerate(text.split("`"))
    )
