"""Invented names, so that no answer can be remembered: it must be read from a passage.

A name is one of about 30,000 words put together from syllables. A tenth of the words, chosen by a hash of the
word alone, is *held out*: no training text ever shows them, and every record of the demo is named with them.
"""

from random import Random
from zlib import crc32

_HEADS = (
    "Al Am An Ar Bal Bar Bel Ber Bor Bran Bren Cal Car Cas Cor Dal Dan Dar Del Dor Dun El Em Er Es Fal Far Fen "
    "Fer Fol Gal Gar Gel Gor Grim Hal Har Hel Hol Hor Il In Is Jar Jen Jor Kal Kar Kel Ker Kor Lan Lar Len Lin "
    "Lor Lun Mal Mar Mel Mer Mor Nal Nar Nel Nor Ol Or Os Pal Par Pel Per Pol Ral Ran Rel Ren Ril Ros Sal San "
    "Sel Ser Sil Sol Sten Tal Tar Tel Ter Thal Thor Til Tor Tul Ul Ur Val Van Var Vel Ver Vin Vol Wal War Wel "
    "Wen Wil Yar Yel Yor Zan Zel Zor"
).split()
_MIDDLES = "a e i o u an en in on ar er or al el".split()
_TAILS = (
    "bek bo by da dan den der dia do don dor dra dus fa fin fred gan gar gate gen go hald ham heim hold ka kan "
    "ken ko la lan len lia lin lo lund ma man mar mer mia mo mond mora na nar nel nia no nor ra rak ran ren ria "
    "ric rin ro ros sa sen ser sia so son sta stad ta tan ter tha thin ton tor va van ven ver vik vin vo wick win "
    "worth wyn za zen zo"
).split()


def is_held_out(word: str) -> bool:
    """Whether `word` is kept from every training text."""
    return crc32(word.encode()) % 10 == 0


def name(rng: Random, held_out: bool = False) -> str:
    """One invented word, from the held-out tenth or from the rest."""
    while True:
        middle = rng.choice(_MIDDLES) if rng.random() < 0.25 else ""
        word = rng.choice(_HEADS) + middle + rng.choice(_TAILS)
        if is_held_out(word) == held_out:
            return word
