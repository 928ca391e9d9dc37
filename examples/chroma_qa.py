"""Index a folder into Chroma and ask it: `python examples/chroma_qa.py [FOLDER] [QUESTION]`.

Needs spring-rag[chroma]. Without arguments it asks the demo's documents.
"""

import sys
import tempfile
from pathlib import Path

from chroma_spring_rag import ChromaQA, connect_folder, index_files, open_or_create_collection
from spring_rag import SpringModel
from spring_rag.demo.default import default_backbone
from spring_rag.demo.paths import DOCUMENTS, TOKENS

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCUMENTS
question = sys.argv[2] if len(sys.argv) > 2 else "How heavy is Bertram the giant tortoise?"

database = Path(tempfile.mkdtemp())  # a folder of yours keeps what is indexed
collection = open_or_create_collection(connect_folder(database, create=True), "documents")
report = index_files(collection, [folder])
print(f"{report.files} files, {report.total} passages")

model = SpringModel.from_pretrained(default_backbone(), tokens=TOKENS)
answer = ChromaQA(model, collection, top_k=3).ask(question, max_new_tokens=24)
print(answer.text)
for passage in answer.passages:
    print(f"  {passage.score:.2f}  {Path(str(passage.source)).name}")
