"""Reading and writing virtual tokens: files, folders and the Hub."""

from spring_rag.persistence.artifact import Artifact
from spring_rag.persistence.folder import write_folder
from spring_rag.persistence.hub import push
from spring_rag.persistence.source import load
from spring_rag.persistence.tensors import write_pt

__all__ = ["Artifact", "load", "push", "write_folder", "write_pt"]
