"Write README.md from nbs/index.ipynb; with --check, only say whether it is in step."
import re, sys
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).parent.parent
nb = nbformat.read(root/'nbs/index.ipynb', as_version=4)
for c in nb.cells:
    if c.cell_type == 'code':
        if re.match(r'#\| *echo: *false', c.source): c.metadata['hide'] = True
        for o in c.outputs:                               # a table reads best as Markdown
            if 'text/html' in o.get('data', {}): o.data.pop('text/plain', None)
hidden = [c for c in nb.cells if c.metadata.get('hide')]
for c in hidden: c.source = ''
text,_ = MarkdownExporter().from_notebook_node(nb)
text = re.sub(r'```\w*\s*```\n', '', text)               # cells without their source
text = re.sub(r'\]\(([\w./]+\.(ipynb|png))\)', r'](nbs/\1)', text)
text = re.sub(r'<style[^>]*>.*?</style>\s*', '', text, flags=re.S)
text = re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'
text = '<!-- Made from nbs/index.ipynb by .ci/readme.py: edit that. -->\n\n' + text
readme = root/'README.md'
if '--check' in sys.argv:
    if readme.read_text(encoding='utf8') != text: sys.exit('README.md is not what nbs/index.ipynb gives: run python .ci/readme.py')
else: readme.write_text(text, encoding='utf8')
