"""The parts of the reference that are made from the code; `python -m docs_tools FOLDER` writes them."""
