"""The currencies the engine knows, with the number of decimals of their minor unit.

Source: ISO 4217, the maintenance agency's list one of currencies and funds in use (SIX,
https://www.six-group.com/en/products-services/financial-information/data-standards.html);
compiled here by hand, state of 2026. Codes without a minor unit (metals such as XAU, the units of
account XDR, XSU and XUA, the bond units, XTS and XXX) are left out because no amount can be stated
in them. Withdrawn codes (HRK, SLL, CUC, ZWL, ANG, and BGN since 2026) are left out because nothing
can be charged in them any more. Crypto assets have no ISO code.

Providers deviate from the standard in what they put on the wire; that is theirs to correct, with
`engine.domain.money.rescale`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_CODES_BY_EXPONENT: Final = {
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
    2: """
        AED AFN ALL AMD AOA ARS AUD AWG AZN
        BAM BBD BDT BMD BND BOB BOV BRL BSD BTN BWP BYN BZD
        CAD CDF CHE CHF CHW CNY COP COU CRC CUP CVE CZK
        DKK DOP DZD EGP ERN ETB EUR FJD FKP
        GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF
        IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT
        LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN
        NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB
        SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL
        THB TJS TMT TOP TRY TTD TWD TZS UAH USD USN UYU UZS VED VES
        WST XAD XCD XCG YER ZAR ZMW ZWG
    """,
    3: "BHD IQD JOD KWD LYD OMR TND",
    4: "CLF UYW",
}

EXPONENTS: Final[Mapping[str, int]] = MappingProxyType(
    {code: digits for digits, codes in _CODES_BY_EXPONENT.items() for code in codes.split()}
)
"""Decimals of the minor unit by upper-case ISO 4217 code."""

# A plain dict beside the read-only view, because every payment looks a code up.
_CANONICAL: Final[dict[str, str]] = {
    written: code for code in EXPONENTS for written in (code, code.lower())
}


def is_currency(code: str) -> bool:
    """Whether `code` is an upper-case ISO 4217 code with a minor unit."""
    return code in EXPONENTS


def normalise_currency(text: str) -> str | None:
    """The upper-case code for `text` in either case, or None where it is not a currency.

    Nothing is stripped: "EUR\\n" and " EUR" are not currencies.
    """
    code = _CANONICAL.get(text)
    # Only ASCII may change case: "ı" and "ſ" become the letters I and S when upper-cased.
    if code is None and len(text) == 3 and text.isascii():
        return _CANONICAL.get(text.upper())
    return code


def exponent(code: str) -> int:
    """Decimals of the minor unit of an upper-case code: USD 2, JPY 0, KWD 3, CLF 4.

    Raises KeyError for an unknown code: callers normalise what comes from outside first.
    """
    return EXPONENTS[code]
