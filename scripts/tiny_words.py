"""The tiny backbones' tokenizers: BERT WordPiece over the grammar, the built-in tasks and pieces to spell anything."""

from __future__ import annotations

import string
import tempfile
from pathlib import Path

from tiny_grammar import words as grammar_words
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")
PAD, UNK, CLS, SEP, MASK, DEC = range(len(SPECIAL))


def _split(words: str) -> list[str]:
    return words.split()


#: Words that pre-training says nothing about an image with: the built-in tasks' and common ones of small data sets.
OTHER = _split("""
about above across after all almost also always among another any are around as ask at away back background base be
beautiful because before behind below beside between big blank both bright building but by can canvas car cat category
chair child city class clear close cold cool corner corners corresponds curved dark day dim dog domain door down drawn
each eat edge edges either empty every eye face far few fewer first five flat food for four from front full girl good
group hair half hand has have he head heavy hello her here high him his hold holding home hot house how i if inside
into it its items kind large larger last leaf left less life light like line little living location long looking low
made main male man many mark may medium me middle mixed more most much narrow near neutral never new next night nine
nobody none nor normal now number numeral odd of off old one only open or other our out outline outside over pair pale
pattern people person photo piece place plain plant play plus point pointed pointy polygon quiet rather reads red
right road room round rounded row same say second see seen set several sharp she sheet shot show shows side sides sign
single sit sitting six size sketch sky slim small smaller smallest biggest largest soft solid some spot square stand
standing still street strong table tall ten test text than that their them then there these they thick thin third this
those three tiny to together ton too tree true two type under unit up upper lower us use very view wall warm was water
we wear wearing well were what when where which while wide who whole why wide window with without woman word work yes
you young your zero seven eight false tone tones oval box boxes disk disks hoop hoops hollow gem plus sun spiky floats
sits rests lies hangs appears displays contains coloured colored color colors colour colours hue shade shades tint
cyan magenta navy lime maroon olive gold silver beige hexagon pentagon octagon heart arrow moon line cube sphere
cylinder
""")


def vocabulary() -> list[str]:
    """Every token, special ones first: whole words, then letters, digits and signs alone and as continuations."""
    signs = string.ascii_lowercase + string.digits + string.punctuation
    starts = _split("un re in dis pre sub over con com pro")
    endings = _split(
        "s es ed ing er est ly y al ion ment ness less ful able ty th st nd rd or an en on in at it is us ic ous ive"
    )
    inner = _split("ar at an en er es in is it le nd ng on or ou ra re ro st te ti to tr th ch sh ck ee oo ea ai ay")
    tokens = [*SPECIAL, *grammar_words(), *OTHER, *starts, *signs]
    tokens += [f"##{piece}" for piece in (*string.ascii_lowercase, *string.digits, *endings, *inner)]
    return list(dict.fromkeys(tokens))


def tokenizer() -> BertTokenizerFast:
    """The tokenizer. `[DEC]`, which starts what the decoder writes, is its `bos_token`, as in the published BLIP."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        path.write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
        inputs = ["input_ids", "attention_mask"]  # neither model knows token types
        return BertTokenizerFast(
            vocab=str(path), do_lower_case=True, model_max_length=64, bos_token="[DEC]", model_input_names=inputs
        )


def dialogue_vocabulary() -> list[str]:
    """The same and what marks who speaks: for a language model. The others' ids stay where they are."""
    return [*vocabulary(), "question", "answer", "user", "assistant"]


def dialogue_tokenizer() -> PreTrainedTokenizerFast:
    """A language model's tokenizer: the same words as `tokenizer`; as GPT-2's, it adds no special token by itself."""
    ids = {word: place for place, word in enumerate(dialogue_vocabulary())}
    words = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    words.normalizer = normalizers.BertNormalizer(lowercase=True)
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.decoder = decoders.WordPiece()
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[DEC]", "eos_token": "[SEP]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        model_max_length=192,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="left",
        **named,
    )
