"One run: ways to train, what is measured, every task."
import cloudpickle, json, pytest, subprocess, sys, threading
from common import *
from common_bench import *
from latentreg_fastai.bench import run as run_module
from latentreg_fastai.bench.run import pack_added

RUN = dict(data='digits', data_args=dict(n_train=100, n_valid=100), net='small_cnn', net_args={}, method='cw-VR', args=dict(weight=1.), seed=0, epochs=2, lr=1e-2)

def test_every_callback_has_a_name_in_the_runner():
    made = {getattr(m.make, 'func', m.make).__name__ for m in methods.values() if m.make and not m.of_fastai} - {'ITRARemedy'}
    import latentreg_fastai.all as everything
    bases = [f'latentreg_fastai.callback.{r}' for r in ('core','terms','mixing','rows')]
    there = {n for n,o in vars(everything).items() if isinstance(o, type) and issubclass(o, LayerCallback) and o.__module__ not in bases}
    assert made == there - set(ONLY_WATCH)

def test_whole_numbers_of_a_suite_suit_fastais_mixup():
    "YAML reads 1 as a whole number, of which torch makes no Beta distribution"
    one,same = (one_run({**RUN, 'method': 'MixUp', 'args': dict(alpha=a)}) for a in (1,1.))
    assert one['nll'] == same['nll']

def test_a_loss_is_a_method_and_nll_is_the_nll():
    "Label smoothing changes the training loss, not the measure; a constant rate is another run"
    runs = [{**RUN, 'method': m, 'args': {}, 'epochs': 1, 'lr': 0.} for m in ('baseline','LabelSmoothing')]
    plain,smooth = map(one_run, runs)
    close(plain['nll'], smooth['nll'], eps=1e-6)          # nothing was learnt: the same network
    assert plain['curve'][0]['train_loss'] != smooth['curve'][0]['train_loss']
    flat = [{**RUN, 'fit': f} for f in ('flat','one_cycle')]
    assert run_key(flat[0]) != run_key(flat[1]) and one_run(flat[0])['nll'] != one_run(flat[1])['nll']

def test_ways_to_train(monkeypatch):
    "Each changes the run; bfloat16 is seen by the network, on a CPU too, where fp16 is refused by name"
    seen,forward = set(),nn.Linear.forward
    monkeypatch.setattr(nn.Linear, 'forward', lambda self, x: seen.add((y := forward(self, x)).dtype) or y)
    figures = {}
    for name,change in dict(plain={}, sgd=dict(opt='sgd'), rmsprop=dict(opt='rmsprop', lr=1e-3), wd=dict(wd=.5), drops=dict(fit='drops', drops=[.5]), drop=dict(drop=.5), bf16=dict(precision='bf16', channels_last=True)).items():
        seen.clear()
        figures[name] = one_run({**RUN, **change})['nll']
        assert (torch.bfloat16 in seen) == (name == 'bf16')
    assert len(set(figures.values())) == len(figures) and all(map(math.isfinite, figures.values()))
    if default_device().type == 'cpu':
        with pytest.raises(ValueError, match="'fp16' needs a GPU.*bf16"): one_run({**RUN, 'precision': 'fp16'})

def test_the_rate_drops():
    "To a tenth at each share of training, as the papers' schedules do"
    lrs,run = [],{**RUN, 'fit': 'drops', 'drops': [.5,.75], 'lr': .1, 'opt': 'sgd', 'epochs': 4}
    learn = trained(run, Probe(after_batch=lambda l: l.training and lrs.append(l.opt.hypers[-1]['lr'])))
    n = len(lrs)
    close(lrs, [.1]*(n//2) + [.01]*(n//4) + [.001]*(n - n//2 - n//4), eps=1e-9)

def test_medians_are_of_the_last_epochs():
    "However few epochs were measured, no earlier one enters"
    few,some = (one_run({**RUN, 'epochs': 6, 'points': 2, 'last': n}) for n in (1,3))
    assert [c['epoch'] for c in few['curve']] == [0,3,5] and few['error_last5'] == few['error'] and few['nll_last5'] == few['nll']
    assert [c['epoch'] for c in some['curve']] == [0,3,4,5] and some['nll_last5'] == np.median([c['nll'] for c in some['curve'][1:]])

@pytest.mark.parametrize('name', RUNS)
def test_runs_of_every_task(name, tmp_path):
    "Twice the same figures, whatever the process did before; the baseline's are others; records are JSON and tables can be made of them"
    run = {**SMALL, **RUNS[name]}
    a,b,base = one_run(run),one_run(run),one_run({**run, 'method': 'baseline', 'args': {}})
    figures = [k for k in ('error','nll','ece','brier','judge_error','corruptions','samples') if k in a]
    assert {k: a[k] for k in figures} == {k: b[k] for k in figures} and a['error'] >= 0 and json.loads(json.dumps(a)) == a
    assert a.get('figure') == {'reconstruction': 'MSE × 100', 'gan': 'Fréchet distance'}.get(name)
    assert a['curve'][-1]['train_loss'] != base['curve'][-1]['train_loss']
    t = summary([base, a])
    shown = show_table(t)
    assert (a.get('figure') or 'error %') in shown and ('NLL' in shown) == ('nll' in a) == ('better NLL' in shown) and t.gain[run['method']] == base['error'] - a['error']
    for axs in (plot_table([base, a]), plot_gains({'all': t})): assert any((a.get('figure') or 'error') in s for ax in axs for s in (ax.get_xlabel(), ax.get_ylabel())); plt.close('all')
    assert len(winners(t).splitlines()) == 2 + ('nll' in a) and plot_curves([base, a], col='error').get_ylabel() == (a.get('figure') or 'error %')
    plt.close('all')

def test_semi_supervised_run_has_its_labels():
    "Baseline and method have the same hundred labels, batches and start"
    learn = trained({**SMALL, **RUNS['semi-supervised'], 'epochs': 1})
    base = trained({**SMALL, **RUNS['semi-supervised'], 'epochs': 1, 'method': 'baseline', 'args': {}})
    assert len(learn.dls.train_ds) == 20 and torch.equal(learn.dls.train_ds.tensors[0], base.dls.train_ds.tensors[0]) and len(learn.dls.valid_ds) == 100
    said = lambda run: runner.recorded_run({**SMALL, **run})['failed']
    assert 'give `labeled`' in said({**RUNS['semi-supervised'], 'labeled': None}) and 'LabelSmoothing is for other tasks' in said({**RUNS['gan'], 'method': 'LabelSmoothing', 'args': {}})

def test_rows_share_the_autoencoder(monkeypatch):
    "Of the same data and seed; another seed has another"
    made,fit = [],run_module.fit_vae
    monkeypatch.setattr(run_module, 'fit_vae', lambda *a, **kw: made.append(kw['seed']) or fit(*a, **kw))
    run_module._vaes.clear()
    run = {**SMALL, **RUNS['VarMixup'], 'measures': None, 'epochs': 1}
    run.pop('measures')
    for r in (run, {**run, 'args': dict(p=.5)}, {**run, 'seed': 1}): one_run(r)
    assert made == [0,1]

# What is in a record

def test_measures_in_a_record():
    "Speed and memory are positive and fit together; ECE and Brier score are those of the network's predictions"
    rec,learn = one_run(RUN),trained(RUN)
    probs,y = learn.get_preds()
    close(rec['brier'], float((probs - F.one_hot(y, 10)).square().sum(1).mean()), eps=1e-5)
    confidence,top = probs.max(1)
    close(rec['error'], 100*float((top != y).float().mean()), eps=1e-4)
    assert abs(float(confidence.mean() - (top == y).float().mean())) - 1e-6 <= rec['ece'] <= 1   # the mean gap is never above the mean of the gaps
    close(rec['images_s'], 64/rec['step_ms']*1e3, eps=1e-6)
    assert rec['step_ms'] > 0 and rec['memory_mb'] > 0 and 0 < rec['seconds'] < 60 and json.loads(json.dumps(rec)) == rec

@linux
def test_memory_is_the_runs_own(tmp_path):
    "A wide layer takes its weights, gradients and two averages: 16 bytes each; a small run after it takes what one before took"
    runs = [{**RUN, 'epochs': 2, 'seed': s, 'net_args': dict(width=w)} for s,w in ((0,64),(1,64),(2,50_000),(3,64))]
    _,before,wide,after = (r['memory_mb'] for r in run_all(runs, tmp_path/'r.jsonl'))
    weights = 16*50_000*(128+10)/2**20
    assert .8*weights < wide < 4*weights and max(before, after) < wide/4

ONE = {**RUN, 'epochs': 1}

# The key and the record

KEY = 'condition stage task labeled vae data data_args net net_args method args seed epochs lr fit drops opt wd precision channels_last drop measures label'.split()
def as_before(run):
    "The key as it was when runs were dicts"
    text = json.dumps({k: run[k] for k in KEY if run.get(k) is not None}, sort_keys=True)
    return json.dumps(json.loads(text, parse_float=lambda s: int(x) if (x := float(s)).is_integer() else x))

HERE = Path(__file__).resolve().parent.parent
FILES = sorted(f for f in HERE.glob('nbs/results/*/records.jsonl') if not (f.parent/'experiment.json').exists())    # those of suites, not of comparisons

@pytest.mark.parametrize('file', FILES, ids=lambda f: f.parent.name)
def test_the_key_of_every_record(file):
    "Records that were made before are recognised, and a run gives back what its record says"
    recs = read_records(file)
    assert recs
    for r in recs:
        run = Run.from_dict(r)
        assert run.key == run_key(r) == as_before(r)
        assert run.to_dict() == {k: v for k,v in r.items() if k in settings_of_runs} and run == run.to_dict()
        assert row_of(r) == run.row == r.get('label', r['method'])

def test_there_are_records(): assert len(FILES) > 10

def test_what_makes_two_runs_the_same():
    run = Run.from_dict(ONE)
    same = [dict(args=dict(weight=1)), dict(lr=.01), dict(suite='mine', version=3), dict(points=1, last=2), dict(fit=None)]
    other = [dict(seed=1), dict(args={}), dict(fit='one_cycle'), dict(label='mine'), dict(stage='test'), dict(measures=['robustness']), dict(data_args={})]
    assert {run.replaced(**c).key for c in same} == {run.key} and len({run.key, *(run.replaced(**c).key for c in other)}) == 1 + len(other)

def test_a_run_reads_like_its_record():
    run = Run.from_dict({**ONE, 'wd': 0., 'opt': None})
    assert {**run} == {**ONE, 'wd': 0.} and run['wd'] == run.wd == 0 and 'opt' not in run and run.get('opt', 'adam') == 'adam' and len(run) == 10
    with pytest.raises(KeyError): run['opt']
    with pytest.raises(KeyError): run['key']
    with pytest.raises(AttributeError): run.seed = 3
    assert Run.from_dict(run) is run and run == Run(**ONE, wd=0.) != Run(**ONE) and "method='cw-VR'" in repr(run) and 'opt' not in repr(run)
    import copy, pickle
    assert pickle.loads(pickle.dumps(run)) == copy.deepcopy(run) == run

@pytest.mark.parametrize('change,match', [
    (dict(epoch=3), ["no 'epoch'",'epochs']), (dict(net_args=None), ["needs 'net_args'"]), (dict(lr=None), ["needs 'lr' besides 'data', 'data_args', 'net', 'net_args', 'method', 'args', 'seed', 'epochs'"]), (dict(epochs=0), ['`epochs`','whole number']), (dict(epochs=1.5), ['`epochs`','1.5']),
    (dict(labeled='x'), ['`labeled`',"'x'"]), (dict(vae=3), ['`vae`','mapping']), (dict(args=[1]), ['`args`','mapping']), (dict(fit='onecycle'), ['`fit`','one_cycle']), (dict(fit='drops'), ['`drops`']),
    (dict(precision='fp8'), ['`precision`','bf16']), (dict(net='resnet19'), ["network 'resnet19'",'resnet20',"networks['resnet19']"]), (dict(data='digit'), ["data set 'digit'",'digits',"datasets['digit']"]),
    (dict(method='VRR'), ["method 'VRR'",'cw-VR',"methods['VRR']"]), (dict(task='regression'), ["task 'regression'","tasks['regression']"]), (dict(opt='adamw'), ["optimizer 'adamw'","optimizers['adamw']"]),
    (dict(measures=['robust']), ["measure 'robust'","measures['robust']"]),
    (dict(seed='0'), ['`seed`','whole number',"'0'"]), (dict(seed=-1), ['`seed`','of 0 or more','-1']), (dict(lr='1e-2'), ['`lr`','number',"'1e-2'"]), (dict(lr=-1.), ['`lr`','0 or more']),
    (dict(wd='1e-3'), ['`wd`','number']), (dict(drop=7), ['`drop`','share','7']), (dict(points=0), ['`points`','above 0']), (dict(last=0), ['`last`','above 0']), (dict(labeled=0), ['`labeled`','above 0']),
    (dict(channels_last='no'), ['`channels_last`','true or false',"'no'"]), (dict(drops=[.5]), ['`drops`','`fit: drops`',"'one_cycle'"]), (dict(fit='flat', drops=[.5]), ['`drops`',"'flat'"]),
    (dict(fit='drops', drops=.5), ['`drops`','list of shares','0.5']), (dict(fit='drops', drops=[.5,75]), ['`drops`','share','75']), (dict(version='1'), ['`version`',"'1'"]), (dict(stage='tset'), ['`stage`','strength',"'tset'"]),
    (dict(condition=3), ['`condition`','text']), (dict(label=['a']), ['`label`','text']), (dict(net=3), ['`net`','text']), (dict(measures='corruptions'), ['`measures`','list of names',"['corruptions']"]),
    (dict(measures=['error']), ["'error'",'a record has already']), (dict(measures=['label']), ["'label'"]), (dict(measures=['nll_last5']), ["'nll_last5'"]), (dict(measures=['judge_error']), ["'judge_error'"]), (dict(measures=['failed']), ["'failed'"]),
    (dict(args=dict(weight=SchedLin(0., 1.))), ['`args`','text, numbers','not a _Annealer']), (dict(data_args=dict(n_train=tensor(3))), ['`data_args`','lists and mappings','tensor(3)','Tensor']), (dict(args={(1,2): 1}), ['`args`','tuple']), (dict(method='GANMixup', args={}), ['GANMixup','gan','classification']), (dict(method='SemiSupervisedMixup', args={}), ['labeled'])], ids=lambda o: '' if isinstance(o, list) else ' '.join(o))
def test_what_a_run_cannot_be(change, match):
    "Told before anything is trained, by all that takes a run"
    for f in (trained, one_run, lambda r: Run.from_dict(r).check()):
        with pytest.raises(ValueError) as e: f({**ONE, **change})
        assert all(m in str(e.value) for m in match), e.value

def test_a_run_that_lacks_a_setting():
    "Each missing one is named once; a run that was made without `from_dict` is checked too"
    with pytest.raises(ValueError) as e: Run.from_dict({**ONE, 'lr': None})
    assert str(e.value).count("'lr'") == 1
    with pytest.raises(ValueError, match="needs 'data', .*'lr'$"): Run.from_dict({})
    for k in ONE:
        with pytest.raises(ValueError, match=f"needs '{k}' besides"): Run(**{**ONE, k: None}).check()

def test_what_a_run_can_be():
    "Whole numbers for numbers, zeros where they say something, tuples for lists, NumPy's floats, which are Python's"
    for c in (dict(lr=0), dict(lr=np.float64(.1)), dict(wd=0), dict(drop=0), dict(drop=1), dict(seed=0), dict(fit='drops', drops=(.5,1)), dict(channels_last=False), dict(measures=[]), dict(measures=('samples',)), dict(label=100), dict(version=0), dict(args=dict(layers=['0',None], p=True))):
        Run.from_dict({**ONE, **c}).check()

def test_a_run_in_a_set():
    runs = [Run.from_dict({**ONE, **c}) for c in ({}, dict(args=dict(weight=1)), dict(seed=1))]
    assert runs[0] == runs[1] and hash(runs[0]) == hash(runs[1]) and len({*runs}) == 2 and {runs[0]: 'a'}[runs[1]] == 'a'

def test_a_key_says_what_settings_hold():
    "To who asks for the key, as `run_all` does for all runs before it begins"
    for args,said in ((dict(a=SchedLin(0., 1.)), 'a _Annealer$'), (dict(a=[tensor(1.)]), 'Tensor'), (dict(a=np.float32(1)), 'float32')):
        with pytest.raises(ValueError, match=f'`args` may hold text, numbers.*{said}'): run_key({**ONE, 'args': args})

def test_a_record_can_be_trained_again():
    rec = one_run(ONE)
    again = one_run(rec)
    assert list(rec) == list(again) and (rec['error'],rec['nll'],rec['curve']) == (again['error'],again['nll'],again['curve'])
    assert {k: rec[k] for k in ONE} == ONE

# Methods

def test_methods_say_what_they_are_for():
    assert [n for n in methods if not find_method(n).listed] == ['WeightDecay','DropoutRate','ITRA-c remedy'] and [n for n in methods if find_method(n).of_fastai] == ['LabelSmoothing','MixUp']
    assert [n for n in methods if not find_method(n).plain] == ['SemiSupervisedMixup','GANMixup']
    assert {n: list(m.needs) for n,m in methods.items() if m.needs} == dict(VarMixup=['vae'], SemiSupervisedMixup=['unlabeled'])
    assert methods['baseline']() is None and isinstance(methods['cw-VR'](weight=2.), VarianceRegularizer)
    with pytest.raises(ValueError, match="Method.*`needs`.*'vae'.*'teacher'"): Method(needs='teacher')

def test_no_list_shows_an_experiments_method():
    "It can be found, but neither errors nor the command offer it"
    assert isinstance(find_method('ITRA-c remedy')(), ITRA)
    with pytest.raises(ValueError) as e: find_method('itra')
    assert 'remedy' not in str(e.value) and 'ITRA-c split' in str(e.value)

@pytest.fixture
def registered():
    yield
    for r in registries.values(): r.replace_added({})

def test_a_method_is_given_what_it_needs(registered):
    seen = []
    def mine(**kwargs): seen.append(kwargs); return Callback()
    methods['mine'] = Method(mine, needs=['vae','unlabeled'])
    trained({**ONE, 'method': 'mine', 'labeled': 20, 'vae': dict(epochs=1, width=4, dim=3), 'args': dict(a=1)})
    (given,) = seen
    assert list(given) == ['vae','unlabeled','a'] and isinstance(given['vae'], nn.Module) and len(given['unlabeled'].dataset) == 80 and given['a'] == 1

def test_a_loss_of_ones_own(registered):
    methods['sharp'] = lambda s: lambda pred, y: F.cross_entropy(s*pred, y)
    learn = trained({**ONE, 'method': 'sharp', 'args': dict(s=2.)})
    pred,y = torch.randn(4, 10),torch.arange(4)
    assert torch.equal(learn.loss_func(pred, y), F.cross_entropy(2*pred, y))
    assert one_run({**ONE, 'method': 'sharp', 'args': dict(s=1.)})['nll'] == one_run({**ONE, 'method': 'baseline', 'args': {}})['nll']

def test_callbacks_together_are_a_method(registered):
    "As a list or a tuple they all act: strength 0 of one leaves the other's figures"
    base,one = (one_run({**ONE, 'method': m, 'args': {}})['nll'] for m in ('baseline','VR'))
    methods['list'],methods['tuple'],methods['none'] = lambda w: [VarianceRegularizer(classwise=False), CovarianceRegularizer(w)],lambda w: (CovarianceRegularizer(w),),None
    learn = trained({**ONE, 'method': 'list', 'args': dict(w=1.)})
    assert set(learn.recorder.terms) == {'vr_loss','cw_cr_loss'}
    nll = lambda m,**args: one_run({**ONE, 'method': m, 'args': args})['nll']
    assert nll('list', w=0.) == one != nll('list', w=1.) and nll('tuple', w=0.) == base == nll('none') != nll('tuple', w=1.)

@pytest.mark.parametrize('entry,match', [
    (lambda: None, ["methods['x'] made None",'`return`','registered as None']), (lambda: 3, ["methods['x'] made 3",'list of callbacks','loss function']), (lambda: ManifoldMixup, ["methods['x']",'ManifoldMixup']),
    (lambda: [ManifoldMixup(), 3], ["methods['x']",'list of callbacks']), (Method(lambda: None), ["methods['x'] made None"]), (VarianceRegularizer(), ["methods['x']",'makes a callback','lambda']),
    ([VarianceRegularizer()], ["methods['x']",'makes a callback']), (CrossEntropyLossFlat(), ["methods['x']",'loss function']), (nn.CrossEntropyLoss(), ["methods['x']"]), ('VR', ["methods['x']","'VR'"]),
    (Method(ManifoldMixup, tasks='clasification'), ["methods['x']","unknown task 'clasification'",'reconstruction'])])
def test_what_is_no_method(entry, match, registered):
    methods['x'] = entry
    with pytest.raises(ValueError) as e: trained({**ONE, 'method': 'x', 'args': {}})
    assert all(m in str(e.value) for m in match), e.value

def test_a_task_may_be_registered_after_its_method(registered):
    methods['x'] = Method(ManifoldMixup, tasks=['mine'])
    run = Run.from_dict({**ONE, 'method': 'x', 'args': {}, 'task': 'mine'})
    with pytest.raises(ValueError, match="unknown task 'mine'"): run.check()
    tasks['mine'] = run_module.Classification
    run.check()
    with pytest.raises(ValueError, match='x is for other tasks'): run.replaced(task=None).check()

def test_a_callback_is_no_entry_of_a_method():
    with pytest.raises(ValueError, match='Method: `make` must be what makes'): Method(VarianceRegularizer())

# Measures of one's own

def test_what_measures_give(tmp_path, registered):
    "NumPy's scalars are numbers; what JSON cannot hold fails that run by name, and the others go on"
    given = dict(np32=np.float32(.5), np64=dict(a=[np.int64(3), np.bool_(True)]), tensor=tensor(1.), array=dict(a=np.arange(3)), keys={(1,2): 3})
    for k,v in given.items(): measures[k] = lambda learn, v=v: v
    recs = run_all([{**ONE, 'measures': [k]} for k in given] + [ONE], tmp_path/'r.jsonl')
    good = recs[:2] + recs[-1:]
    assert [failed(r) for r in recs] == [False,False,True,True,True,False] and len({r['error'] for r in good}) == 1
    assert recs[0]['np32'] == .5 and recs[1]['np64'] == dict(a=[3,True])
    for r,k,said in zip(recs[2:], ('tensor','array','keys'), ('Tensor','ndarray','tuple')): assert f"measures['{k}'] gave" in r['failed'] and said in r['failed'] and 'a record can hold' in r['failed']

def test_a_measure_that_a_record_has_already(tmp_path, registered, monkeypatch):
    "Nothing is trained for it; a figure of a task of one's own is known after an epoch"
    measures['error'] = measures['label'] = measures['margin'] = lambda learn: 0.
    class Margin(run_module.Classification):
        def figures(self, learn): return dict(super().figures(learn), margin=np.float32(1.))
    tasks['mine'] = Margin
    recs = run_all([{**ONE, 'measures': ['margin'], 'task': 'mine'}, {**ONE, 'task': 'mine'}, {**ONE, 'measures': ['margin']}], tmp_path/'r.jsonl')
    assert "'margin'" in recs[0]['failed'] and 'figure of the task' in recs[0]['failed'] and (recs[1]['margin'],recs[2]['margin']) == (1.,0.)
    monkeypatch.setattr(run_module, 'trained', lambda *args: 1/0)
    for r in run_all([{**ONE, 'measures': [m]} for m in ('error','label')], tmp_path/'r.jsonl'): assert f"cannot be named '{r['measures'][0]}'" in r['failed']

def test_networks_of_ones_own(registered):
    "They are told the sizes that they take"
    seen = []
    def make(n_out, **kwargs): seen.append((n_out,kwargs)); return nn.Sequential(nn.Flatten(), nn.Linear(64, n_out))
    networks['fixed'],networks['free'],networks['none'] = lambda n_out: make(n_out),make,lambda: make(10)
    for n in ('fixed','free','none'): trained({**ONE, 'net': n, 'method': 'baseline', 'args': {}})
    assert seen == [(10,{}),(10,dict(n_in=1)),(10,{})]

def test_all_of_ones_own_is_timed(registered):
    methods['mine'] = partial(VarianceRegularizer, classwise=False)
    t = speed(['mine'], rounds=1, settings=['MLP, batch 100, TensorDL'])
    assert list(t.index) == ['baseline again','mine','baseline, ms a step']

# In every process

def register():
    "One entry of each kind, with closures and a class that no other process can import"
    scale = 2.
    class Mine(LatentCallback):
        def penalty(self, z, *yb): return scale*z.square().mean()
    class Margin(run_module.Classification):
        figure = 'margin'
        def figures(self, learn): return dict(error=float(learn.recorder.values[-1][1]))
    methods['mine'] = Mine
    datasets['mine'] = lambda seed, n: digits_dls(n_train=n, n_valid=100, seed=seed)
    networks['mine'] = lambda n_out: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, n_out))
    tasks['mine'] = Margin
    optimizers['mine'] = partial(Adam, mom=.5)
    measures['mine'] = lambda learn: scale*len(learn.dls.train_ds)

MINE = dict(data='mine', data_args=dict(n=60), net='mine', net_args={}, method='mine', args={}, task='mine', opt='mine', measures=['mine'], epochs=1, lr=1e-2)

def check_mine(recs, want):
    assert not any(map(failed, recs)), recs[0].get('traceback')
    assert [(r['error'],r['mine'],r['figure']) for r in recs] == [(r['error'],120.,'margin') for r in want]

def test_names_of_ones_own_at_two_jobs(tmp_path, registered):
    register()
    runs = [{**MINE, 'seed': s} for s in range(3)]
    check_mine(run_all(runs, tmp_path/'two.jsonl', jobs=2), run_all(runs, tmp_path/'one.jsonl'))

def test_worker_processes_forget_what_is_gone(tmp_path, registered):
    "A replaced entry is known to them, and put back when it is"
    run = {**ONE, 'method': 'VR', 'args': {}}
    usual = run_all([run], tmp_path/'a.jsonl', jobs=2)[0]
    methods['VR'] = lambda: VarianceRegularizer(100.)
    other = run_all([run], tmp_path/'b.jsonl', jobs=2)[0]
    methods.replace_added({})
    again = run_all([run], tmp_path/'c.jsonl', jobs=2)[0]
    assert usual['nll'] == again['nll'] != other['nll']

def test_an_entry_that_is_none_is_sent(registered):
    methods['mine'] = None
    assert methods.added() == dict(mine=None)

def test_names_of_ones_own_on_a_cluster(tmp_path, registered):
    distributed = pytest.importorskip('distributed')
    register()
    runs = [{**MINE, 'seed': s} for s in range(2)]
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as c:
        there = run_all(runs, tmp_path/'there.jsonl', scheduler=c.scheduler_address)
    check_mine(there, run_all(runs, tmp_path/'here.jsonl'))

def test_functions_with_a_cache_are_sent(registered, monkeypatch):
    "By name where they can be imported, else by their code, with the cache's size and what it ignores, but empty"
    import types
    from latentreg_fastai.bench.tables import read_table
    mine = types.ModuleType('mine_with_a_cache')
    exec('import functools\nn = 3\n@functools.lru_cache(maxsize=7, typed=True)\ndef power(k): return n**k if k < 2 else n*power(k-1)', vars(mine))
    mine.power(3)
    monkeypatch.setitem(sys.modules, mine.__name__, mine)
    cloudpickle.register_pickle_by_value(mine)
    try:
        methods.update(mine=mine.power, theirs=read_table)
        packed = pack_added()
    finally: cloudpickle.unregister_pickle_by_value(mine)
    monkeypatch.delitem(sys.modules, mine.__name__)
    (entries,_) = cloudpickle.loads(packed)
    power = entries['methods']['mine']
    assert entries['methods']['theirs'] is read_table and power is not mine.power
    assert power.cache_parameters() == dict(maxsize=7, typed=True) and power.cache_info().currsize == 0 and power(3) == 27

def test_what_cannot_be_sent(tmp_path, registered):
    import threading
    lock = threading.Lock()
    methods['locked'] = lambda: lock and None
    with pytest.raises(ValueError, match=r"methods\['locked'\] cannot be sent"): run_all([ONE], tmp_path/'r.jsonl', jobs=2)
    assert read_records(tmp_path/'r.jsonl') == []

def test_a_report_of_a_method_that_is_not_here(tmp_path, registered):
    "By its label, in the text and in the pictures; a suite that is to be run must know its names"
    register()
    spec = dict(title='Mine', version=1, base=dict(data='digits', data_args=dict(n_train=60, n_valid=100), net='mine', epochs=1), lrs=[.01], seeds=2,
                rows={'mine': {}, 'mine too': dict(of='mine', args=dict(weight=2.)), 'wrong': dict(of='mine', args=dict(wrong=1))})
    bench.bench(Suite(spec, 'mine'), tmp_path, jobs=2)
    for r in registries.values(): r.replace_added({})
    report = Report(tmp_path)
    assert list(report.tables[None].index) == ['baseline','mine','mine too','wrong'] and list(report.tables[None].failed) == [0,0,0,2]
    file = tmp_path/'records.jsonl'                      # several processes write in any order
    file.write_text(''.join(reversed(file.read_text().splitlines(keepends=True))))
    assert list(Report(tmp_path).tables[None].index) == ['baseline','mine','mine too','wrong']
    text = report.markdown()
    assert all(f.exists() for f in report.write()) and '| mine too |' in text and '| wrong |' in text.partition('## Failed')[2]
    with pytest.raises(ValueError, match="mine.*unknown network 'mine'.*networks\\['mine'\\]"): Suite(spec, 'mine')
    (tmp_path/'mine.yaml').write_text(json.dumps(spec))
    with pytest.raises(ValueError, match="unknown"): Suite.load(tmp_path/'mine.yaml')

def test_a_notebooks_own_class(tmp_path):
    "What a script defines at its top, in `__main__`, is known to two processes and to a cluster's"
    code = f'''
import warnings; warnings.simplefilter('ignore')
from fastai.vision.all import *
from latentreg_fastai.all import *
from latentreg_fastai.bench import *
class Mine(LatentCallback):
    def penalty(self, z, *yb): return z.square().mean()
def helper(): return Mine(weight=.5)
methods['mine'] = lambda: helper()
if __name__ == '__main__':
    runs = [{{**{ONE!r}, 'method': 'mine', 'args': {{}}, 'seed': s}} for s in (0,1)]
    out = Path({str(tmp_path)!r})
    two,one = run_all(runs, out/'two.jsonl', jobs=2),run_all(runs, out/'one.jsonl')
    assert [r['nll'] for r in two] == [r['nll'] for r in one], two[0].get('failed')
'''
    (tmp_path/'script.py').write_text(code)
    p = subprocess.run([sys.executable, tmp_path/'script.py'], capture_output=True, text=True)
    assert p.returncode == 0, p.stderr

def test_a_methods_files_are_of_one_run(tmp_path, monkeypatch, registered):
    "A registered method that saves: a run finds no file of another, and leaves none"
    monkeypatch.chdir(tmp_path)
    found = []
    class Look(Callback):
        def before_fit(self): found.append((self.learn.path/self.learn.model_dir/'best.pth').exists())
    methods['saves'] = lambda: [Look(),SaveModelCallback(monitor='valid_loss', fname='best')]
    for s in (0,1):
        learn = trained({**RUN, 'method': 'saves', 'args': {}, 'seed': s})
        assert learn.model_dir == 'models'               # a user's `learn.save` goes where it always goes
    assert found == [False,False] and not (tmp_path/'models').exists()

def test_what_cannot_be_sent_to_another_process(monkeypatch):
    "It is named, with what to do"
    lock = threading.Lock()
    monkeypatch.setitem(measures, 'locked', lambda learn: lock)
    with pytest.raises(ValueError, match=r"measures\['locked'\] cannot be sent to another process .*lock.*: make what cannot be sent within its function.*`jobs=1`"): pack_added()
