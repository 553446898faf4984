"README: it follows from its notebook and the records, each block runs as printed, each link leads somewhere."
import contextlib, importlib.util, io, json, os, re, subprocess, sys, warnings
from configparser import ConfigParser
from pathlib import Path
import matplotlib.pyplot as plt
import pytest
pytest.importorskip('nbdev'); pytest.importorskip('nbconvert')
from common_bench import latentreg

HERE = Path(__file__).resolve().parents[1]
README = (HERE/'README.md').read_text(encoding='utf8')
blocks = lambda language: re.findall(rf'^```{language}\n(.*?)^```$', README, flags=re.M|re.S)
tables = re.findall(r'(?:^\|.*\n)+', README, flags=re.M)

@pytest.fixture(scope='module')
def made():
    "The script that makes it"
    spec = importlib.util.spec_from_file_location('readme', HERE/'.ci/readme.py')
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module

def test_it_is_in_step_with_its_notebook():
    p = subprocess.run([sys.executable, '-W', 'ignore', HERE/'.ci/readme.py', '--check'], capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    assert len(README.splitlines()) <= 130 and README.count('![') == 1 and '<table' not in README and '<div' not in README

# Links

def links(text): return re.findall(r'\]\(([^)]*)\)', text)

def test_every_link_is_absolute_and_made_from_the_settings(made):
    cfg = ConfigParser()
    cfg.read(HERE/'settings.ini', encoding='utf8')
    cfg = cfg['DEFAULT']
    docs,files = cfg['doc_url'],f"{cfg['git_url']}/raw/{cfg['branch']}"
    assert made.readme(docs, files) == README and all(l.startswith((docs + '/', files + '/')) for l in links(README))
    others = made.readme('https://docs.example/x', 'https://files.example')
    assert all(l.startswith(('https://docs.example/x/', 'https://files.example/')) for l in links(others)) and cfg['doc_url'] not in others and cfg['git_url'] not in others

def test_every_link_leads_somewhere(made):
    "Built against the repository itself: pictures are files, pages are made from notebooks, anchors are headings"
    from nbdev.config import nbpath2html
    pages = {nbpath2html(p).name: p for p in (HERE/'nbs').glob('*.ipynb')}
    found = links(made.readme('site', str(HERE)))
    assert len(found) > 20
    for l in found:
        if not l.startswith('site/'): assert Path(l).is_file(), l; continue
        page,_,anchor = l.removeprefix('site/').partition('#')
        assert page in pages, l
        heads = [re.sub('[^a-z0-9 -]', '', h.lower()).replace(' ', '-') for c in json.loads(pages[page].read_text(encoding='utf8'))['cells']
                 if c['cell_type'] == 'markdown' for h in re.findall(r'^#+ (.*)$', ''.join(c['source']), flags=re.M)]
        assert not anchor or anchor in heads, l

def test_no_link_is_around_a_name_that_nbdev_links():
    "On the site it makes a link of each name in backticks, and a link in a link is none"
    texts = [t for c in json.loads((HERE/'nbs/index.ipynb').read_text(encoding='utf8'))['cells']
             for t in [''.join(c['source']), *(''.join(o.get('data', {}).get('text/markdown', '')) for o in c.get('outputs', []))]]
    assert not [m for t in texts for m in re.findall(r'\[[^\]]*`[^\]]*\]\(', t)]

# What the records say

def cells(): return [''.join(c['source']) for c in json.loads((HERE/'nbs/index.ipynb').read_text(encoding='utf8'))['cells'] if c['cell_type'] == 'code']

@pytest.fixture(scope='module')
def names():
    "What the cells of the notebook that print no code define: its table and its list"
    res,here = {},os.getcwd()
    os.chdir(HERE/'nbs')
    try:
        exec('from fastai.vision.all import *', res)
        for source in cells():
            if not source.startswith('#| echo: false'): continue
            *lines,last = source.splitlines()
            exec('\n'.join(lines if last.startswith('Markdown(') else [*lines,last]), res)
            if last.startswith('Markdown('): res.setdefault('shown', []).append(eval(last, res).data)
    finally: os.chdir(here)
    return res

def test_table_and_list_follow_from_the_files(made, names):
    "The table from the records, the list from the tutorials"
    table,tutorials = (made.absolute(t, made.cfg['doc_url'], '') for t in names['shown'])
    assert f'\n{table}\n' in README and f'\n{tutorials}\n' in README, 'jupyter nbconvert --to notebook --execute --inplace nbs/index.ipynb && nbdev-clean && python .ci/readme.py'
    assert len(table.splitlines()) - 2 <= 8 and set(names['verdicts']) <= set(vars(__import__('latentreg_fastai.all').all))

def test_the_table_by_hand():
    "Two of its figures, worked out from the lines of the records, and a step's time"
    read = lambda f: [json.loads(l) for l in (HERE/'nbs/results'/f).read_text(encoding='utf8').splitlines()]
    recs = [r for r in read('mnist-1k/records.jsonl') if r['stage'] == 'test']
    error = lambda m: {r['seed']: r['error'] for r in recs if r['method'] == m}
    base,mixed = error('baseline'),error('ManifoldMixup')
    d = [base[s] - mixed[s] for s in base]
    mean = sum(d)/len(d)
    half = 2.262157*(sum((x - mean)**2 for x in d)/(len(d) - 1)/len(d))**.5            # Student's t, nine degrees of freedom
    row = next(l for l in tables[1].splitlines() if '[ManifoldMixup]' in l)
    assert f"**{mean:.2f}** ({mean-half:.2f} to {mean+half:.2f}; {sum(x > 0 for x in d)} of {len(d)})" in row and len(d) == 10
    assert f"{read('speed.jsonl')[-1]['ratios']['ResNet-20, batch 128']['ManifoldMixup']:.2f}×" in row
    lost = next(l for l in tables[1].splitlines() if '[PhantomEmbedding]' in l).split(' | ')
    assert lost[2] == '–' and '0 of 3' in lost[3] and '**' not in lost[3]

# Each block, as printed

@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [*sys.path])
    return tmp_path

def test_the_python_blocks(empty):
    "One after the other in one process, in an empty folder; the training has the figures that README shows"
    res,said = {},io.StringIO()
    with contextlib.redirect_stdout(said), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        plt.switch_backend('agg')
        first,*others = blocks('python')
        exec(first, res)
        learn = res['learn']
        head,_,*rows = ([c.strip() for c in l.strip('| ').split('|')] for l in tables[0].splitlines())
        assert head == [*learn.recorder.metric_names]
        shown,now = ([[float(v) for v in row[1:-1]] for row in t] for t in (rows, [[0, *v, 0] for v in learn.recorder.values]))
        assert len(shown) == len(now) and all(abs(a - b) < .02 + .05*abs(a) for r,s in zip(shown, now) for a,b in zip(r, s))   # other processors round otherwise
        for block in others: exec(block, res)
    plt.close('all')
    assert len(others) == 3 and (empty/'compare'/'report.md').exists() and res['result'].advice in said.getvalue()
    assert {'baseline','mixup','manifold','cw_vr'} <= {*res['result'].tables[None].index}

def test_the_shell_blocks(empty):
    "As they stand, but for the installation and for fewer runs: one seed of one method"
    demo,bench = blocks('sh')
    assert demo == 'pip install . && latentreg demo\n'
    lines = [demo.split(' && ')[1], *(l.split('#')[0] for l in bench.splitlines())]
    for line in lines:
        command,*args = line.split()
        assert command == 'latentreg'
        if args[0] == 'demo': args += ['--methods','cw-VR','--seeds','1']
        if 'digits' in args: args[args.index('--seeds') + 1:] = ['1','--methods','cw-VR']
        p = latentreg(*args)
        assert p.status == 0, f'{line}\n{p.err}'
    assert {'latentreg-demo','latentreg-bench'} == {p.name for p in empty.iterdir()}

def test_the_commands_in_the_text():
    "They parse"
    from latentreg_fastai.cli import _parser
    said = re.findall('`latentreg ([^`]*)`', README)
    assert any(s.startswith('compare') for s in said)
    for s in said:
        if len(s.split()) > 1: _parser().parse_args(s.split())
