"""Metrics: pure functions from predictions and references to scores in percent, each with its source and variants.

`vqa` (VQA accuracy), `caption` (BLEU, ROUGE-L, CIDEr-D on the tokens of `ptb`), `retrieval` (recall at k, median rank),
`classification` (accuracy, macro-F1, AUROC), `instruct` (exact match, ROUGE-L and perplexity of replies). What they are
compared with: `baselines`, `caption_constant` (constant answers), `retrieval_bounds` (chance, and the best there is), `bootstrap`
(intervals).
"""
