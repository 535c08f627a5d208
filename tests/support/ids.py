"""Ids that are valid but unusual."""

from __future__ import annotations

UNUSUAL_IDS = [
    "a\nb",
    "a\r\nb",
    "nul\0inside",
    "{",
    "}",
    "{}",
    "a}b",
    "a{b",
    "a%7Db",
    "a%257Db",
    "{a}{b}",
    "100%",
    "%s",
    " ",
    "  leading and trailing  ",
    "a:b:meta",
    "wake:x",
    "*?[a]\\",
    "☎️ 📞",
    "ж" * 5000,
]
