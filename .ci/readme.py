"Write README.md from nbs/index.ipynb, with links to the site and the repository that settings.ini names; with --check, only say whether it is in step."
import re, sys
from configparser import ConfigParser
from pathlib import Path
import nbformat
from bs4 import BeautifulSoup
from nbconvert import MarkdownExporter
from nbdev.config import nbpath2html

root = Path(__file__).parent.parent
cfg = ConfigParser()
cfg.read(root/'settings.ini', encoding='utf8')
cfg = cfg['DEFAULT']

def markdown(html):
    "The tables in `html`; nothing else of it is shown"
    def rows(t): return [[c.get_text(' ', strip=True) for c in r.find_all(['th','td'])] for r in t.find_all('tr')]
    def lines(head, *body): return ['| ' + ' | '.join(r) + ' |' for r in (head, ['---']*len(head), *body)]
    return '\n\n'.join('\n'.join(lines(*rows(t))) for t in BeautifulSoup(html, 'html.parser').find_all('table'))

def absolute(text, docs, files):
    "`text` with addresses that hold wherever it is shown"
    text = re.sub(r'\]\(([\w.]+\.ipynb)(#[\w-]+)?\)', lambda m: f"]({docs}/{nbpath2html(m[1])}{m[2] or ''})", text)
    return re.sub(r'\]\(([\w./-]+\.png)\)', rf']({files}/nbs/\1)', text)

def readme(
    docs=cfg['doc_url'],                                 # Where the pages are
    files=f"{cfg['git_url']}/raw/{cfg['branch']}",       # Where the repository's files are
):
    "The text of README.md"
    nb = nbformat.read(root/'nbs/index.ipynb', as_version=4)
    nb.metadata.language_info = {'name': 'python'}
    for c in nb.cells:
        if c.cell_type != 'code': continue
        if re.match(r'#\| *echo: *false', c.source): c.source = ''
        for o in c.outputs:
            if 'text/html' in o.get('data', {}): o.data = {'text/markdown': markdown(o.data['text/html'])}
    text,_ = MarkdownExporter().from_notebook_node(nb)
    text = re.sub(r'```python\s*```\n', '', text)        # cells without their source
    text = re.sub(r'\n```\s+```python\n', '\n\n', text)   # imports stand in a cell of their own, but are read with the next
    text = re.sub(r'\n{3,}', '\n\n', re.sub(r'^[ \t]+$', '', text, flags=re.M)).strip() + '\n'
    return '<!-- Made from nbs/index.ipynb by .ci/readme.py: edit that. -->\n\n' + absolute(text, docs, files)

if __name__ == '__main__':
    file,text = root/'README.md',readme()
    if '--check' not in sys.argv: file.write_text(text, encoding='utf8')
    elif file.read_text(encoding='utf8') != text: sys.exit('README.md is not what nbs/index.ipynb gives: run python .ci/readme.py')
