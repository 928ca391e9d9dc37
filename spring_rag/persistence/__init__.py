"""Reading and writing virtual tokens: files, folders and the Hub."""

from spring_rag.persistence.files import write_pt
from spring_rag.persistence.folder import write_folder
from spring_rag.persistence.hub import push
from spring_rag.persistence.source import load

__all__ = ["load", "push", "write_folder", "write_pt"]
