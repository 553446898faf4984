"The method cards: each has one shape, its tables and pictures are those of the records and the notebooks, and so are the figures in its text."
import ast, importlib.util, inspect, json, re
from pathlib import Path
import pandas as pd
import pytest
from fastai.vision.all import *
from latentreg_fastai import all as public
from latentreg_fastai.bench import Report, read_records

NBS = Path(__file__).parents[1]/'nbs'
spec = importlib.util.spec_from_file_location('cards', NBS/'results/cards.py')
cards = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cards)

HEADINGS = ['## Method card', '### What it does', '### Use', '### Strength', '### Cost', '### What it works beside, and what it does not',
            '### Where it departs from the paper', '### What the paper claims, and what was measured', '### Source']
NAMES = list(cards.CARDS)
METHODS = [p.stem for p in sorted(NBS.glob('1*.ipynb')) if '.ipynb_' not in p.name and p.stem.startswith(tuple(f'1{i}_callback' for i in range(9)))]

def parts(name):
    "The text below each heading of a card"
    heads = re.split(r'^(#+ .*)\n', cards.text_of(name), flags=re.M)
    return dict(zip(heads[1::2], heads[2::2]))

@pytest.fixture(scope='module')
def found(): return cards.reports()

def test_each_callback_has_a_card(): assert NAMES == METHODS and len(NAMES) == 10

@pytest.mark.parametrize('name', NAMES)
def test_the_shape(name):
    cs = cards.cells(name)
    said = [i for i,c in enumerate(cs) if c['cell_type'] == 'markdown']
    assert cards.source(cs[said[0]]).startswith('# ') and said[1] == cards.place(name)          # it opens the page
    assert all(cards.source(c).startswith(('#| default_exp','#| hide')) for c in cs[said[0]+1:said[1]])
    p = parts(name)
    assert list(p) == HEADINGS and re.findall(r'^#+ .*', cards.text_of(name), flags=re.M) == HEADINGS
    assert all(t.strip() for h,t in p.items() if h != '## Method card')

@pytest.mark.parametrize('name', NAMES)
def test_what_it_does_takes_three_sentences_and_a_picture(name):
    text,image = re.split(r'\n\n(?=!\[)', parts(name)['### What it does'].strip())
    assert len(re.split(r'(?<=[.])\s+(?=[A-Z`])', text.strip())) == 3, text
    alt,file = re.fullmatch(r'!\[([^\]]+)\]\(([\w/.]+)\)', image.strip()).groups()
    assert len(alt) > 80 and (NBS/file).exists()

@pytest.mark.parametrize('name', NAMES)
def test_the_use_calls_what_there_is(name):
    block, = re.findall(r'```python\n(.*?)\n```', parts(name)['### Use'], flags=re.S)
    assert 2 <= len(block.splitlines()) <= 3
    calls = [c for c in ast.walk(ast.parse(block)) if isinstance(c, ast.Call) and isinstance(c.func, ast.Name) and hasattr(public, c.func.id)]
    assert calls
    for c in calls: inspect.signature(getattr(public, c.func.id)).bind(*c.args, **{k.arg: k.value for k in c.keywords})

@pytest.mark.parametrize('name', NAMES)
def test_the_source_can_be_found(name):
    text = parts(name)['### Source']
    assert re.search(r'\]\(https://(arxiv\.org/abs/\d{4}\.\d{5}|doi\.org/10\.)', text) and re.search(r'\b(19|20)\d\d\b', text)

def test_tables_and_pictures_are_in_step(found):
    old = [n for n in NAMES if cards.stale(n, found)]
    assert not old, f'{old}: run python nbs/results/cards.py --write'

# Figures in the text

def per(x): return f'{x:.2f}%'

@pytest.fixture(scope='module')
def figures(found):
    "For each card, texts that it must have, made from the records"
    more = {s: Report(NBS/'results'/s) for s in ('mixing','gan','autoencoder')}
    pairs = {s: pd.DataFrame([r for r in read_records(NBS/f'results/{s}/records.jsonl') if r['stage'] == 'test'])
             for s in ('pairs-1k','pairs-cifar-1k','itra-collapse')}
    pairs = {s: t.assign(row=t.get('label', t.method).fillna(t.method)).groupby('row').error.mean() for s,t in pairs.items()}
    m1,m5,m50,low = (found['mnist-mlp'].tables[c] for c in ('1k','5k','50k',"5k, paper's rate"))
    cifar,news,vae = found['cifar-cnn'].tables['1k'],found['agnews'].tables[None],found['varmixup'].tables['mnist']
    semi,digits = found['semisup'].tables['mnist'],found['digits'].tables[None]
    mix,gan = more['mixing'].tables[None],more['gan'].tables[None]
    e,nll = (lambda t,row: per(t.error[row])),(lambda t,row: f'{t.nll[row]:.3f} against {t.nll["baseline"]:.3f}')
    robust = pd.concat([pd.DataFrame(r['robustness']).assign(method=r['method']) for r in read_records(NBS/'results/interpretation.jsonl')])
    robust = 100*robust.query('level > 0').groupby(['method','test']).accuracy.mean()
    right = lambda m,t: f'{robust[m,t]:.1f}%'
    ece = lambda row: f'{100*vae.ece[row]:.1f}%'
    penalties = ['cw-VR','VR','cw-CR','CR']
    auto = (more['autoencoder'].tables['one-cycle'].pipe(lambda t: 100*t.gain/t.error['baseline'])).drop('baseline')
    assert (m50.nll['ManifoldMixup'] > m50.nll['baseline']) and (m5.gain[penalties] < .3).all()
    assert (vae.error['VarMixup'] > vae.error['baseline'])
    return {
        '10_callback.mixup': [f'{e(mix, "all layers")} with all layers and the input, {e(mix, "input and first two layers")} with the input '
                              f'and two layers, and {e(mix, "input alone")} with the input alone',
                              f'{nll(m1, "ManifoldMixup")}, and {nll(m5, "ManifoldMixup")}',
                              f'{e(mix, "all layers, gradients blocked")} against {e(mix, "baseline")}',
                              f'{right("manifold mixup", "fgsm")} right under FGSM against {right("baseline", "fgsm")}, '
                              f'and {right("manifold mixup", "pgd")} against {right("baseline", "pgd")} under PGD'],
        '11_callback.moments': [f'cw-VR {e(m1, "cw-VR")}, no penalty {e(m1, "baseline")}, VR {e(m1, "VR")}',
                                f'cw-VR {e(cifar, "cw-VR")}, no penalty {e(cifar, "baseline")}',
                                f'the penalties gain {low.gain[penalties].min():.1f} to {low.gain[penalties].max():.1f} points',
                                f'by {auto.min():.0f} to {auto.max():.0f}% with one cycle'],
        '12_callback.phantom': [f'{per(pairs["pairs-1k"]["Phantom k=2"])} against {per(pairs["pairs-1k"]["baseline"])} on 1,000 images of MNIST, '
                                f'and {e(cifar, "Phantom")} against {e(cifar, "baseline")} on 1,000 of CIFAR-10'],
        '13_callback.itra': [f'{nll(m5, "ITRA-c")} on 5,000', f'({nll(news, "ITRA-c")})',
                             f'{per(100-news.error["ITRA-c"])} against {per(100-news.error["baseline"])}',
                             f'is then {pairs["itra-collapse"]["none"]:.0f}% instead of {pairs["itra-collapse"]["warm-up 0.2"]:.0f}%'],
        '14_callback.baselines': [f'({per(pairs["pairs-cifar-1k"]["CenterLoss"])} error against {per(pairs["pairs-cifar-1k"]["baseline"])})',
                                  f'{digits.gain["DisturbLabel"]:+.2f} points on 300 digits'],
        '15_callback.varmixup': [f'{ece("VarMixup, half of the batches")} against {ece("input mixup")}, and {ece("baseline")} without mixing. '
                                 f'No with `p=1`: {ece("VarMixup")}',
                                 f'{e(vae, "VarMixup, half of the batches")} against {e(vae, "baseline")} with `p=.5`; {e(vae, "VarMixup")} with `p=1`'],
        '16_callback.semisup': [f'{e(semi, "semi-supervised, manifold")} against {e(semi, "baseline")}',
                                f'{e(semi, "semi-supervised, manifold")} against {e(semi, "semi-supervised, input")}',
                                f'the ECE is {100*semi.ece["semi-supervised, manifold"]:.1f}%, against {100*semi.ece["baseline"]:.1f}% with the labels alone '
                                f'and {100*semi.ece["semi-supervised, input"]:.1f}%'],
        '17_callback.gan': [f'takes {gan.time["manifold"]:.2f} times as long', f'{gan.error["baseline"]:.1f}, {gan.error["input"]:.1f} and {gan.error["manifold"]:.1f}']}

@pytest.mark.parametrize('name', [n for n in NAMES if n not in ('14_callback.settings','18_callback.monitor')])   # these two state none
def test_figures_come_from_the_records(name, figures):
    text = cards.text_of(name)
    for said in figures[name]: assert said in text, said

# The page that helps to choose

def test_the_overview_leads_to_every_card():
    cs = json.loads((NBS/'methods.ipynb').read_text(encoding='utf8'))['cells']
    text = '\n'.join(cards.source(c) for c in cs if c['cell_type'] == 'markdown')
    assert {*re.findall(r'\]\((1\d_callback\.\w+)\.ipynb\)', text)} == {*NAMES}
    drawn = [c for c in cs if any('image/png' in o.get('data', {}) for o in c.get('outputs', []))]
    assert len(drawn) == 1 and '#| fig-alt:' in cards.source(drawn[0])
