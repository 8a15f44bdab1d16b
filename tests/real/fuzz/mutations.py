"""Small damage to bytes: flips, cuts, repetitions, and tokens that have broken parsers before."""

from __future__ import annotations

from random import Random

JSON_TOKENS = (
    *(b"null", b"true", b"-0", b"1e2", b"1e999", b"0.1", b"-1", b"9223372036854775808"),
    *(b"9" * 400, b"9" * 5_000, b"NaN", b"Infinity", b'""', b"{}", b"[]", b"[[[[[[[["),
    *(b'{"a":' * 40, b"[" * 200, b"\\u0000", b"\\ud800", b"\\udfff\\ud800", b"\\u2028"),
    *(b"\x00", b"\xef\xbb\xbf", b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"),
    *(b",", b":", b'"', b"\\", b"\r\n", b"\x1b[31m", b"\x7f", b'","amount":1,"'),
    *(b"4242424242424242", b"4242 4242 4242 4242", b"'; DROP TABLE payments; --", b"%00"),
)
HTTP_TOKENS = (
    *(b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\x00", b"\t", b" ", b":", b"%", b"\x7f", b"\xff"),
    *(b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"Content-Length: 1, 1\r\n"),
    *(b"Content-Length: 99999999999999999999\r\n", b"Content-Length: 0x10\r\n"),
    *(b"Content-Length: " + b"0" * 5_000 + b"2\r\n", b"Content-Length: +2\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: xchunked\r\n"),
    *(b"Transfer-Encoding : chunked\r\n", b"Transfer-Encoding: chunked, identity\r\n"),
    *(b"Expect: 100-continue\r\n", b"Upgrade: websocket\r\nConnection: upgrade\r\n"),
    *(b"Connection: close\r\n", b"Host: \r\n", b"Host: a\r\nHost: b\r\n", b" folded\r\n"),
    *(b"HTTP/1.0", b"HTTP/1.1", b"HTTP/2.0", b"HTTP/0.9", b"GET", b"CONNECT", b"OPTIONS *"),
    *(b"http://other.example/", b"/../", b"//", b"?", b"#", b"%2e%2e", b"%00", b";", b"0\r\n\r\n"),
    *(b"FFFFFFFFFFFFFFFFFF\r\n", b"-1\r\n", b"1;ext=" + b"x" * 200 + b"\r\n", b"A" * 9_000),
    b"X: 1\r\n" * 100,
)


def mutated(random: Random, data: bytes, tokens: tuple[bytes, ...], rounds_max: int = 4) -> bytes:
    """`data`, damaged once or a few times in places of the generator's choice."""
    out = bytearray(data)
    for _ in range(random.randint(1, rounds_max)):
        _damage(random, out, tokens)
    return bytes(out)


def _damage(random: Random, out: bytearray, tokens: tuple[bytes, ...]) -> None:
    at = random.randrange(len(out) + 1)
    until = min(len(out), at + random.choice((1, 1, 2, 4, 16, 64)))
    kind = random.randrange(8)
    if kind == 0 and at < len(out):
        out[at] ^= 1 << random.randrange(8)
    elif kind == 1:
        out[at:until] = random.randbytes(random.randint(1, 8))
    elif kind == 2:
        del out[at:until]
    elif kind == 3:
        out[at:at] = out[at:until] * random.choice((1, 2, 50))
    elif kind == 4:
        del out[at:]
    elif kind == 5:
        out[at:until] = random.choice(tokens)
    else:
        out[at:at] = random.choice(tokens)
