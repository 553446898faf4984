"Every suite, condition by condition, for a few steps on stand-ins of the shape of its data."
import pytest, yaml
from common import *
from latentreg_fastai.bench import *
from latentreg_fastai.bench import run as runner,suite as suite_module

SHAPES = dict(mnist=(1,28,10), fashionmnist=(1,28,10), kmnist=(1,28,10), cifar10=(3,32,10), cifar100=(3,32,100), svhn=(3,32,10), stl10=(3,96,10), imagenet=(3,224,1000))
SUITES = {n: Suite.load(n) for n in suite_files()}
CONDITIONS = [(n,c) for n,s in SUITES.items() for c in s.conditions]

def stand_in(name):
    channels,size,classes = SHAPES[name]
    def dls(n_train=None, n_valid=None, seed=0, bs=64, **kwargs):
        y = torch.arange(40) % classes
        return tensor_dls((torch.rand(40, channels, size, size), y), (torch.rand(40, channels, size, size), y), vocab=list(range(classes)), bs=bs)
    return dls

@pytest.mark.parametrize('name,condition', CONDITIONS, ids=plain)
def test_a_few_steps(name, condition, monkeypatch, tmp_path):
    "All rows of a suite's first condition, in the others the baseline, the last row and one that costs more"
    for d in SHAPES: monkeypatch.setitem(runner.datasets, d, stand_in(d))
    suite = SUITES[name]
    rows = list(suite.conditions[condition]['rows'])
    if condition != next(iter(suite.conditions)): rows = [*[r for r in rows if 'cost' in suite.conditions[condition]['rows'][r]][:1], [r for r in rows if not r.startswith('baseline')][-1]]
    smoke = suite.only(rows, conditions=[condition]).smoke()
    recs = smoke.bench(tmp_path/'records.jsonl')
    bad = [r for r in recs if failed(r)]
    assert not bad, bad[0].get('traceback')
    assert {r.get('label', r['method']) for r in recs} >= {'baseline',*(r for r in rows if not r.startswith('baseline ×'))} and all(0 <= r['error'] <= (math.inf if 'figure' in r else 100) and math.isfinite(r['step_ms']) for r in recs)

@pytest.mark.parametrize('name', SUITES)
def test_papers_figures_have_rows(name):
    "Every figure of a paper belongs to a condition and stands beside rows there; an accuracy lies between 0 and 100"
    suite = SUITES[name]
    for p in suite.paper or []:
        assert p['measure'] in ('error','accuracy','nll') and 'paper' in p['source']
        for c,values in p['values'].items():
            assert c in suite.conditions or (c == 'all' and list(suite.conditions) == [None])
            known = set(suite.conditions[None if c == 'all' else c]['rows']) | {'WeightL1'}   # the paper's, where the suite leaves it out
            assert set(values) <= known, set(values) - known
            assert all(0 <= v[0] < 100 and len(v) <= 2 for v in values.values())

def test_what_a_cpu_is_to_do():
    "The suites and the conditions that a CPU is to do"
    assert {'autoencoder','semisup','varmixup','rotation','mixing','gan','mnist-mlp','cifar-cnn','cifar-resnet','cifar-itra','cifar-mixup','agnews','digits'} <= set(SUITES)
    assert [c for c,s in SUITES['cifar-cnn'].conditions.items() if not s['gpu']] == ['1k'] and all(c['gpu'] for c in SUITES['cifar-resnet'].conditions.values())
    assert not any(c['gpu'] for n in ('mnist-mlp','agnews','digits') for c in SUITES[n].conditions.values())

def test_throughput(tmp_path):
    "Both loops of the script run, see as many images, and leave a record; on a CPU nothing is promised about their ratio"
    import subprocess, sys
    script,out = Path(__file__).parent.parent/'nbs/results/throughput.py',tmp_path/'t.jsonl'
    p = subprocess.run([sys.executable, '-W', 'ignore', script, '--nets', 'resnet20', '--bs', '8', '--n', '40', '--epochs', '2', '--device', 'cpu', '--out', out], capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    row = read_records(out)[0]['rows'][0]
    close(row['ratio'], row['fastai_images_s']/row['bare_images_s'], eps=1e-6)
    assert 'resnet20' in p.stdout and row['fastai_images_s'] > 0 and row['optimizer_ms'] > 0
