"""Answer a question from passages, with and without virtual tokens: `python examples/plain.py`.

Needs nothing beyond spring-rag itself.
"""

from spring_rag import RagPrompt, SpringModel
from spring_rag.demo.default import default_backbone
from spring_rag.demo.paths import TOKENS

QUESTION = "Who built the bridge of Morven?"
PASSAGES = [
    "The bridge of Morven was built by Ada Quill in 1811.",
    "Morven lies on the river Senn. Its market is held on Tuesdays.",
]

model = SpringModel.from_pretrained(default_backbone(), tokens=TOKENS)  # or a model of yours and its tokens

print(model.answer(QUESTION, PASSAGES))

# One prompt with several numbers of virtual tokens; what the backbone makes of the passages is computed once.
prompt = RagPrompt(QUESTION, PASSAGES, model.template())
ks = [0, 1, 10, 50]
for k, generation in zip(
    ks, model.generate([prompt] * len(ks), num_tokens=ks, max_new_tokens=24), strict=True
):
    print(f"k = {k:2}: {generation.text.strip()}")
