"The site: notebooks that can be processed cell by cell, pictures with words, pages in their order, and the checks of the pages themselves."
import ast, importlib.util, json, re, shutil
from configparser import ConfigParser
from pathlib import Path
import pytest, yaml
pytest.importorskip('nbdev'); pytest.importorskip('selenium'); pytest.importorskip('latex2mathml')
tomllib = pytest.importorskip('tomllib')                  # of Python 3.11
from latentreg_fastai._modidx import d as index

HERE = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((HERE/'nbs').glob('*.ipynb'))
NAMED = dict(argvalues=NOTEBOOKS, ids=lambda p: p.name)
cfg = ConfigParser()
cfg.read(HERE/'settings.ini', encoding='utf8')
cfg = cfg['DEFAULT']

def code_cells(nb):
    for i,c in enumerate(json.loads(nb.read_text(encoding='utf8'))['cells']):
        if c['cell_type'] == 'code': yield i,''.join(c['source']),c

def load(name='pages'):
    spec = importlib.util.spec_from_file_location(name, HERE/f'.ci/{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

pages = load()

# Notebooks

@pytest.mark.parametrize('nb', **NAMED)
def test_imports_have_cells_of_their_own(nb):
    "In notebooks that export, nbdev runs each cell that imports: code beside the imports would train, or use names of cells that were not run"
    cells = list(code_cells(nb))
    if not any(re.search(r'^#\| *export', s, re.M) for _,s,_ in cells): return
    for i,source,_ in cells:
        if re.search(r'^#\| *export', source, re.M) or 'nbdev_export()' in source: continue
        tree = ast.parse(re.sub(r'^[!%].*$', '', source, flags=re.M))
        imports = lambda nodes: [isinstance(o, (ast.Import,ast.ImportFrom)) for o in nodes]
        assert not any(imports(ast.walk(tree))) or all(imports(tree.body)), f'{nb.name}, cell {i}: move its imports to a cell of their own'

@pytest.mark.parametrize('nb', **NAMED)
def test_pictures_say_in_words_what_they_show(nb):
    for i,source,c in code_cells(nb):
        n = sum(any(k.startswith('image/') for k in o.get('data', {})) for o in c['outputs'])
        alts = pages.options(source)[0].get('fig-alt') or []
        alts = [alts] if isinstance(alts, str) else alts
        assert len(alts) in ([n] if c['outputs'] else [0,1]) and all(len(a) > 30 for a in alts), f'{nb.name}, cell {i}: {n} pictures, {len(alts)} texts in #| fig-alt:'

def test_each_notebook_has_its_place_in_the_sidebar():
    def hrefs(o):
        if isinstance(o, str): yield o
        elif isinstance(o, list): yield from (h for p in o for h in hrefs(p))
        else: yield from hrefs(o.get('contents') or o['href'])
    there = list(hrefs(yaml.safe_load((HERE/'nbs/sidebar.yml').read_text(encoding='utf8'))['website']['sidebar']['contents']))
    assert len(there) == len({*there}) and {*there} == {nb.name for nb in NOTEBOOKS}

def test_nbdev_knows_the_addresses_of_settings_ini():
    project = tomllib.loads((HERE/'pyproject.toml').read_text(encoding='utf8'))['project']
    assert [project['name'],project['description']] == [cfg['lib_name'],cfg['description']]
    assert [project['urls'][k] for k in ('Repository','Documentation')] == [cfg['git_url'],cfg['doc_url']]
    assert index['settings']['git_url'] == cfg['git_url'] and index['settings']['doc_host'] + index['settings']['doc_baseurl'] == cfg['doc_url']

def test_source_links_have_lines():
    from nbdev.doclinks import NbdevLookup
    find = NbdevLookup('latentreg_fastai')
    names = [n.removeprefix(f'{m}.') for m,syms in index['syms'].items() for n in syms]
    assert len(names) > 400 and all(re.fullmatch(re.escape(cfg['git_url']) + r'/blob/main/latentreg_fastai/\S+\.py#L\d+', find.code(n)) for n in names)

# The checks of the pages

def notebook(tmp_path, monkeypatch, *cells):
    "What is wrong with the page of these cells, in the check's own words"
    import nbformat
    v4 = nbformat.v4
    monkeypatch.setattr(pages, 'proc', tmp_path)
    front = v4.new_raw_cell('---\ntitle: a page\noutput-file: page.html\n---\n')
    nbformat.write(v4.new_notebook(cells=[front, *cells]), tmp_path/'01_page.ipynb')
    made,wrong = pages.make_pages()
    return made,wrong['01_page.ipynb'] + pages.check_links(made)['01_page.ipynb']

def md(tmp_path, monkeypatch, text):
    import nbformat
    return notebook(tmp_path, monkeypatch, nbformat.v4.new_markdown_cell(text))[1]

@pytest.mark.parametrize('text,said', [
    ('[a](missing.ipynb)', 'missing.ipynb: there is no such page or file'), ('[a](#nowhere)', '#nowhere: the page has no such heading'),
    (f"[a]({cfg['doc_url']}/other.html)", 'no such page'), (f"[a]({cfg['git_url']}/blob/main/none.py)", 'the repository has no such file'),
    (f"[a]({cfg['git_url']}/blob/main/setup.py#L9999)", 'the file has no such line'), (f"[a]({cfg['git_url']}/blob/main/setup.py#LNone)", 'no such line'),
    ('![](none.png)', 'has no text in its place'), ('![a spiral](none.png)', 'none.png: there is no such page or file'),
    (r'$\frac{1}{2$', 'do not pair'), (r'$\nosuch{x}$', 'a command that is unknown'), ('it is $ x $', 'only without blanks'),
    ('[[`a`](01_page.ipynb)](page.html)', 'brackets of a link are shown'), ('<table><tr><td>-2.258000</td></tr></table>', 'not rounded: -2.258000')])
def test_a_fault_of_a_page_is_found(tmp_path, monkeypatch, text, said):
    found = md(tmp_path, monkeypatch, text)
    assert found and said in ' '.join(found)

@pytest.mark.parametrize('text', ['## A heading, `here`\n[a](#a-heading-here)', '[a](01_page.ipynb)', '[a](page.html)', f"[a]({cfg['doc_url']}/page.html)",
    f"[a]({cfg['git_url']}/blob/main/setup.py#L3)" + '{target="_blank"}', r'$\big\|x\big\|^2 \leq \lambda$', '<table><tr><td>0.2500</td></tr></table>',
    '<table><tr><th>epoch</th><td>0.250000</td></tr></table>'])
def test_a_sound_page_has_no_fault(tmp_path, monkeypatch, text): assert md(tmp_path, monkeypatch, text) == []

def test_outputs_of_a_page(tmp_path, monkeypatch):
    "Errors and pictures without words are found; words stand in the picture's place, and options are not shown"
    import nbformat
    v4 = nbformat.v4
    picture = lambda: v4.new_output('display_data', {'image/png': 'iVBORw0KGgo='})
    bad = v4.new_code_cell('1/0', outputs=[v4.new_output('error', ename='ZeroDivisionError', evalue='', traceback=[])])
    mute = v4.new_code_cell('plot()', outputs=[picture()])
    good = v4.new_code_cell('#| echo: false\n#| fig-alt: "A line: it rises"\nsecret()', outputs=[picture()])
    made,wrong = notebook(tmp_path, monkeypatch, bad, mute, good)
    html = made['01_page.ipynb'].read_text('utf8')
    assert [w for w in wrong if 'ZeroDivisionError' in w] and [w for w in wrong if w.startswith('a picture of cell 2')] and not [w for w in wrong if 'cell 3' in w]
    assert 'alt="A line: it rises"' in html and 'secret' not in html and 'fig-alt' not in html

@pytest.mark.parametrize('text,want', [('[[`ITRA`](u.html#itra)](13.ipynb)', '[`ITRA`](13.ipynb)'), ('[`ITRA`](u.html#itra)', '[`ITRA`](u.html#itra)'),
    ('| [see [`ITRA`](u.html#itra) here](13.ipynb) | [`a`](b) |', '| [see `ITRA` here](13.ipynb) | [`a`](b) |'), ('`x[[0]](1)`', '`x[[0]](1)`')])
def test_a_name_within_a_link_is_no_second_link(text, want): assert pages.one_link(text) == want

def test_the_link_to_colab():
    name = 'tutorial.own_penalty.ipynb'
    url = re.search(r'\((.*?)\)', pages.colab(name, pages.config()))[1]
    assert url == cfg['git_url'].replace('https://github.com', 'https://colab.research.google.com/github') + f'/blob/main/nbs/{name}'
    assert (HERE/'nbs'/name).exists()

@pytest.mark.skipif(not shutil.which('chromedriver'), reason='needs Chromium with its driver')
def test_the_browser_sees_what_is_cut(tmp_path):
    wide,boxed = ('<div style="width:3000px;%s">a long line</div>' % s for s in ('', 'height:1em'))
    for name,body in dict(cut=wide, scrolls=f'<div style="overflow-x:auto">{boxed}</div>').items():
        (tmp_path/f'{name}.html').write_text(pages.shell.format(css='', title='t', description='', body=body))
    wrong = pages.look({n: tmp_path/f'{n}.html' for n in ('cut','scrolls')}, tmp_path)
    assert wrong['scrolls'] == [] and any('at 390 pixels' in w and 'cut at the right' in w for w in wrong['cut'])
    assert (tmp_path/'cut-390.png').stat().st_size > 500
