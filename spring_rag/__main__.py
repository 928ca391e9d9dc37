"""`python -m spring_rag`, for launchers that start modules: `torchrun -m spring_rag train …`."""

from spring_rag.cli import main

main()
