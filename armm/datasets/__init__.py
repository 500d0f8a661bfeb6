"""Where data comes from: the user's folders, built-in sets, and sets that are downloaded or put in place."""

from armm.datasets.baselines import bigram_bits, marginal_bits, trigram_bits, unigram_bits
from armm.datasets.builtin import builtin_folder
from armm.datasets.captioned import Captioned
from armm.datasets.chats import Calculator
from armm.datasets.folder import Folder
from armm.datasets.images import Digits, Mnist, TorchvisionImages
from armm.datasets.litdata import LitData
from armm.datasets.manifest import Manifest
from armm.datasets.middles import FillInMiddle
from armm.datasets.moving import MovingDigits
from armm.datasets.music import Chorales
from armm.datasets.pairs import Numbers, Pairs
from armm.datasets.proteins import Fasta
from armm.datasets.shards import TokenShards
from armm.datasets.source import Item, Items, ListOfItems, OnError, Source, Splits
from armm.datasets.speech import SpeechCommands, SpokenDigits, YesNo
from armm.datasets.sprites import Sprites
from armm.datasets.synth import Synth
from armm.datasets.texts import Corpus, StandardLibrary

__all__ = [
    "Calculator",
    "Captioned",
    "Chorales",
    "Corpus",
    "Digits",
    "Fasta",
    "FillInMiddle",
    "Folder",
    "Item",
    "Items",
    "ListOfItems",
    "LitData",
    "Manifest",
    "Mnist",
    "MovingDigits",
    "Numbers",
    "OnError",
    "Pairs",
    "Source",
    "SpeechCommands",
    "Splits",
    "SpokenDigits",
    "Sprites",
    "StandardLibrary",
    "Synth",
    "TokenShards",
    "TorchvisionImages",
    "YesNo",
    "bigram_bits",
    "builtin_folder",
    "marginal_bits",
    "trigram_bits",
    "unigram_bits",
]
