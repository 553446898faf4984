"Comparisons on a learner of one's own: that the choice is honest, that mistakes are told, that it goes on where it stopped, and what it says."
import honest
from common import *
from common_bench import *
from scipy import stats as scipy_stats
from sklearn.metrics import f1_score, log_loss
from honest import Null, NoValidation, clock_of_runs, comparison, called, learner_of, make_dls, nulls

@pytest.fixture
def pictures(): "A test that asks for it has its report written"

@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    if 'pictures' not in request.fixturenames: monkeypatch.setattr(Comparison, 'write', lambda self: [])

DLS = make_dls(0)
LEARNER = learner_of(DLS)

def quick(out, methods=None, learner=None, fit=honest.fit, seeds=2, **kwargs):
    "A comparison that takes less than a second"
    with contextlib.redirect_stdout(io.StringIO()):
        return compare(learner or LEARNER, fit, dict(null=Null(3)) if methods is None else methods, seeds=seeds, out=out, **kwargs)

def of(result, method, **which): return [r for r in result.records if r['method'] == method and all(r.get(k) == v for k,v in which.items())]
def errors(result, method, stage='test'): return {r['seed']: r['error'] for r in of(result, method, stage=stage)}
def rows_by(records): return {(r['method'], json.dumps(r['args']), r['seed'], r['stage'], r.get('scale')): r['error'] for r in records}
GRID = Grid(Null, n=3, more=(0,20,40))

# The choice is honest

@pytest.mark.parametrize('i', [1, 2])
def test_nine_null_methods(i):
    "A slice of `python tests/honest.py`: what is run and tested, with a budget and without"
    l = honest.line(i)
    if l['budget'] is None: assert (l['runs'],l['strengths'],l['tested']) == (62,12,9)
    else: assert l['runs'] <= l['budget'] and l['strengths'] < 12 and 0 < l['tested'] < 9
    assert not l['failed'] and l['gain_sd'] > .05        # by more than a row or two of the 4,000

def test_null_methods_are_on_record():
    "200 comparisons, half of them with a budget: a method is called better in no more than 5%, within the binomial's bound"
    ls = honest.lines_of(Path(__file__).parent.parent/'nbs/results/honest.jsonl')
    assert [l['comparison'] for l in ls] == list(range(honest.N)) and not any(l['failed'] for l in ls)
    assert all(l['budget'] == honest.budget_of(l['comparison']) for l in ls)
    assert {(l['runs'],l['strengths'],l['tested']) for l in ls if not l['budget']} == {(62,12,9)}
    assert all(l['runs'] <= l['budget'] and l['tested'] < 9 for l in ls if l['budget']) and {l['strengths'] for l in ls if l['budget']} == {0,8,12}
    for some in (ls, ls[::2], ls[1::2]):
        c = honest.counts(some)
        assert honest.within(c['better'], c['n']) and honest.within(c['worse'], c['n']), c
    assert honest.within(5, 200) and honest.within(16, 200) and not honest.within(17, 200) and not honest.within(11, 100)

class Sharp(Callback):
    "Truly gains: without the dropout that does harm here"
    def before_fit(self):
        for m in self.model.modules():
            if isinstance(m, nn.Dropout): m.p = 0.

@pytest.mark.parametrize('budget', [None, 30])
def test_a_method_that_gains_is_found(budget):
    result = comparison(5, {**nulls(4), 'sharp': Sharp()}, budget)
    assert called(result)[0] == ['sharp'] and 'Better than the baseline, beyond chance: sharp by' in result.advice

class Watched:
    "Rows that tell who reads them and when"
    seen,stage = [],None
    def __init__(self, n, name, seed): self.name,(self.x,self.y) = name,(torch.randn(n, 10, generator=torch.Generator().manual_seed(seed)), torch.arange(n) % 3)
    def __len__(self): return len(self.y)
    def __getitem__(self, i): Watched.seen.append((Watched.stage,self.name,i)); return self.x[i],self.y[i]

def watched_learner(seed):
    train,valid = (TfmdDL(Watched(n, k, i), bs=20, shuffle=not i, num_workers=0) for i,(k,n) in enumerate(dict(train=60, valid=30).items()))
    model = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Dropout(.3), nn.Linear(8, 3))
    return Learner(DataLoaders(train, valid, device='cpu'), model, loss_func=CrossEntropyLossFlat(), metrics=error_rate)

@pytest.mark.parametrize('own_test', [False, True])
def test_a_choice_never_reads_the_judge(tmp_path, monkeypatch, own_test):
    trial = Experiment.trial
    def staged(self, t):
        Watched.stage = t.stage
        try: return trial(self, t)
        finally: Watched.stage = None
    monkeypatch.setattr(Experiment, 'trial', staged)
    Watched.seen = []
    test = TfmdDL(Watched(40, 'test', 2), bs=20, num_workers=0) if own_test else None
    fit = lambda learn, cbs: learn.fit(2, 1e-2, cbs=cbs)  # it validates after each epoch
    quick(tmp_path, dict(a=GRID), watched_learner, fit, test=test)
    read = lambda stage,name: {i for s,n,i in Watched.seen if (s,n) == (stage,name)}
    assert len(read('strength', 'train')) == 60 and not read('strength', 'valid') and not read('strength', 'test')
    assert read('test', 'valid') == set(range(30)) and read('test', 'train') == set(range(60)) and read('test', 'test') == (set(range(40)) if own_test else set())
    assert not read(None, 'test') and not read(None, 'valid')   # nor before the first run

def test_a_choice_does_not_depend_on_the_judge(tmp_path):
    "With other labels for the judge, what is chosen and what it is chosen by are the same, bit for bit"
    other = make_dls(0)
    other.valid.dataset.tensors = (other.valid.dataset.tensors[0], other.valid.dataset.tensors[1].flip(0))
    a,b = (quick(tmp_path/k, dict(a=GRID), learner_of(dls)) for k,dls in (('a',DLS),('b',other)))
    choices = [{**rows_by(r for r in o.records if r['stage'] == 'strength')} for o in (a,b)]
    assert choices[0] == choices[1] and len(choices[0]) == 3 and errors(a, 'baseline') != errors(b, 'baseline')
    assert a.about['chosen'] == b.about['chosen']

def test_strengths_are_chosen_on_a_part_of_the_training_set():
    "The parts of the loaders in a choice, and that the figure is of the part held out"
    exp = Experiment(LEARNER, honest.fit, dict(a=GRID), held_out=.25)
    learn = exp.start(1000, .25)
    rows = lambda dl: {tuple(x.tolist()) for x in dl.dataset.tensors[0]}
    whole,rest,held = rows(DLS.train),rows(learn.dls.train),rows(learn.dls.valid)
    assert len(whole) == 240 and len(held) == 60 and rest | held == whole and not rest & held and not held & rows(DLS.valid)
    assert exp.start(1000, .25).dls.valid.dataset.tensors[0].equal(learn.dls.valid.dataset.tensors[0]) and rows(exp.start(1001, .25).dls.valid) != held

# What a comparison is given

class Halts(Callback):
    def before_batch(self): raise RuntimeError('it halts')
class Uncopied(Callback):
    def __deepcopy__(self, memo): raise TypeError('not this one')

def net(): return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Dropout(.5), nn.Linear(16, 3))
NET = net()
def learner_with(dls=DLS, model=None, **kwargs): return Learner(dls, net() if model is None else model, **{'loss_func': CrossEntropyLossFlat(), 'metrics': error_rate, **kwargs})
SAME = learner_with()

def fixed_start(seed): set_seed(0); return learner_with()
def nothing_random(seed):
    set_seed(0)
    dls = tensor_dls(DLS.train.dataset, DLS.valid.dataset, bs=40, device='cpu')
    dls.train.shuffle = False
    return learner_with(dls, nn.Linear(10, 3))
CALLS = itertools.count()
def other_each_time(seed): set_seed(1000+next(CALLS)); return learner_with()
def only_train(seed): return learner_with(DataLoaders(DLS.train, device='cpu'))
def empty_valid(seed): return learner_with(tensor_dls(DLS.train.dataset, DLS.valid.dataset.new_empty(), device='cpu'))

@pytest.mark.parametrize('args,match,exc', [
    (dict(learner=lambda seed: 3), '`learner` must return a fastai Learner, not 3', TypeError),
    (dict(learner=LEARNER(0)), '`learner` must be a function', ValueError),
    (dict(learner=lambda seed: SAME), 'gives the same network each time', ValueError),
    (dict(learner=lambda seed: learner_with(model=NET)), 'gives the same network each time', ValueError),
    (dict(learner=nothing_random), 'gives the same learner and the same batches for different seeds', ValueError),
    (dict(learner=other_each_time), 'gives other weights for the same seed', ValueError),
    (dict(learner=only_train), 'has no validation set', ValueError),
    (dict(learner=empty_valid), 'has no validation set', ValueError),
    (dict(metric='f1_score'), "there is no metric 'f1_score': the learner has valid_loss, error_rate", ValueError),
    (dict(methods='all'), '`methods`', ValueError),
    (dict(methods='suggested', learner=lambda seed: 3), 'must return a fastai Learner', TypeError),
    (dict(methods=[Null(1)]), '`methods` is a mapping of labels to methods', ValueError),
    (dict(methods=dict(baseline=Null(1))), "a method cannot be called 'baseline'", ValueError),
    (dict(methods={'baseline, longer': Null(1)}), "a method cannot be called 'baseline, longer'", ValueError),
    (dict(methods=dict(a=3)), "method 'a': a method is a callback, a list of callbacks, a loss function or a Grid, not 3", ValueError),
    (dict(methods=dict(a=Uncopied())), 'Uncopied() cannot be copied for each training (not this one): give a function that makes it', ValueError),
    (dict(methods=dict(a=F.cross_entropy)), "a loss that is a function `f` is given as `lambda: f`", ValueError),
    (dict(seeds=0), '`seeds` must be a whole number above 0', ValueError),
    (dict(seeds=[]), '`seeds` is empty', ValueError),
    (dict(seeds='5'), '`seeds` must be a whole number', ValueError),
    (dict(seeds=[0,.5]), '`seeds` must be a whole number', ValueError),
    (dict(held_out=1.), '`held_out`', ValueError),
    (dict(budget='5'), "`budget` is a time like '30min'", ValueError),
    (dict(budget='soon'), "`budget` is a time like '30min'", ValueError),
    (dict(budget=0), '`budget`', ValueError),
    (dict(tune_seeds=0), '`tune_seeds`', ValueError),
], ids=lambda o: ' '.join(o) if isinstance(o, dict) else None)
def test_what_cannot_be_compared_is_refused(tmp_path, args, match, exc):
    "Before anything is trained"
    raises([match], lambda: quick(tmp_path/'out', **args), exc)
    assert not lines(tmp_path/'out'/'records.jsonl')

@pytest.mark.parametrize('make,match', [
    (lambda: Grid(Null(1), more=(1,2)), 'what makes the method is needed'), (lambda: Grid(Null, n=()), 'there is no value to try for `n`'),
    (lambda: Grid(Null, n=3, mroe=(0,1)), "cannot make a method of what it is given (got an unexpected keyword argument 'mroe')"),
    (lambda: Grid(Null, n=(object(),)), '`n` may hold'), (lambda: Grid(lambda: None)(), '<lambda>() made None, which is neither a callback nor')])
def test_what_cannot_be_a_grid(make, match): raises([match], make)

def test_equal_starts_are_noted(tmp_path):
    result = quick(tmp_path, learner=fixed_start)
    assert any('The weights are the same at the start of each seed' in n for n in result.notes) and len(set(errors(result, 'baseline').values())) == 2
    assert 'The weights are the same' in repr(result) and not any('weights are the same' in n for n in quick(tmp_path/'other').notes)

def test_every_kind_of_method(tmp_path):
    "One made, a class, a list, a loss, what makes a loss, a Grid, a partial and a lambda; those that are the same have the same figures"
    smooth = LabelSmoothingCrossEntropyFlat(eps=.3)
    result = quick(tmp_path, dict(made=Null(3), lamb=lambda: Null(3), part=partial(Null, 3), grid=Grid(Null, n=3), list=[Null(3)], both=[Null(3), Null(4)],
        loss=smooth, cls=LabelSmoothingCrossEntropyFlat, fn=Grid(LabelSmoothingCrossEntropyFlat, eps=.3), with_loss=[Null(3), smooth], plain=lambda: F.cross_entropy), seeds=1)
    e = {m: errors(result, m)[0] for m in ['baseline', *result.about['methods']]}
    assert not any(map(failed, result.records)) and e['made'] == e['lamb'] == e['part'] == e['grid'] == e['list'] != e['baseline'] == e['plain']
    assert e['loss'] == e['fn'] != e['baseline'] and e['cls'] != e['loss'] != e['with_loss'] and e['both'] != e['made']

def test_the_learners_own_loss_judges(tmp_path):
    "A method that trains with another loss is judged by NLL and by the learner's loss, not by its own"
    result = quick(tmp_path, dict(smooth=LabelSmoothingCrossEntropyFlat(eps=.9)), seeds=1)
    rec, = of(result, 'smooth')
    assert rec['metrics']['valid_loss'] == pytest.approx(rec['nll'], rel=1e-5) and rec['nll'] < math.log(3)

def test_one_instance_in_two_rows(tmp_path):
    "Each training has a copy of its own"
    class Counts(Callback):
        def __init__(self): self.n = 1
        def before_batch(self): torch.rand(self.n); self.n += 1
    cb = Counts()
    result = quick(tmp_path, dict(one=cb, two=cb))
    assert errors(result, 'one') == errors(result, 'two') and cb.n == 1 and cb.learn is None

def test_a_method_that_fails(tmp_path, pictures):
    "It is recorded and told, and the rest goes on"
    result = quick(tmp_path, dict(halts=Halts(), null=Null(3)), seeds=5)
    assert [failed(r) for r in of(result, 'halts')] == [True]*5 and not any(map(failed, of(result, 'null'))) and len(result.records) == 15
    text = (tmp_path/'report.md').read_text()
    assert 'it halts' in text and '## Failed' in text and result.tables[None].pairs['null'] == 5
    assert result.tables[None].p_holm['null'] == pytest.approx(min(1, 2*result.tables[None].p['null']))   # it counts in Holm's correction
    quick(tmp_path, dict(halts=Halts(), null=Null(3)), seeds=5)
    assert lines(tmp_path/'records.jsonl') == 15         # they are not done again by themselves

def drops_callbacks(learn, cbs): learn.fit(1, 1e-2)
def halting_fit(learn, cbs): raise RuntimeError('no such data')

@pytest.mark.parametrize('fit,match', [(drops_callbacks, 'trained without the callbacks that it was given'), (halting_fit, 'no such data')])
def test_a_baseline_that_fails(tmp_path, fit, match):
    "Nothing else is trained, and once `fit` is mended the same folder will do"
    raises(['the baseline fails, and without it nothing can be compared', match, 'Traceback'], lambda: quick(tmp_path, fit=fit), RuntimeError)
    assert not lines(tmp_path/'records.jsonl')
    assert len(quick(tmp_path).records) == 4

@pytest.mark.parametrize('seeds', [1, [7], [3,1,2], range(4,6), np.int64(2)])
def test_seeds(tmp_path, seeds):
    result = quick(tmp_path, seeds=seeds)
    assert set(errors(result, 'null')) == set(range(seeds) if isinstance(seeds, (int,np.integer)) else seeds)
    assert result.tables[None].p.isna().all() and ('nothing is tested' in result.advice or 'No method was better' in result.advice)
    assert 'beyond chance:' not in result.advice

# One folder, one comparison

def fit_longer(learn, cbs): learn.fit(2, 1e-2, cbs=[*cbs, NoValidation()])
LR = .01
def fit_lr(learn, cbs): learn.fit(1, LR, cbs=[*cbs, NoValidation()])
JUDGE = tensor_dls(DLS.valid.dataset, DLS.train.dataset, device='cpu').valid

@pytest.mark.parametrize('change,named', [
    (dict(learner=lambda seed: learner_with(model=nn.Sequential(nn.Linear(10, 3), nn.Dropout(.1)))), 'learner'), (dict(fit=fit_longer), 'fit'),
    (dict(methods=dict(null=Null(4))), "method 'null'"), (dict(methods=dict(null=Sharp())), "method 'null'"), (dict(methods=dict(null=GRID)), "method 'null'"),
    (dict(metric=accuracy), 'metric'), (dict(test=JUDGE), 'judge'), (dict(fit=fit_longer, methods=dict(null=Sharp())), "fit and method 'null'")])
def test_another_comparison_in_the_same_folder_is_refused(tmp_path, change, named):
    quick(tmp_path)
    before = {f: f.read_bytes() for f in tmp_path.iterdir() if f.is_file()}
    raises([f'holds records of another {named}', 'nothing was changed'], lambda: quick(tmp_path, **change))
    assert {f: f.read_bytes() for f in tmp_path.iterdir() if f.is_file()} == before

def test_records_of_something_else_are_refused(tmp_path):
    run_all([RUN], tmp_path/'records.jsonl')
    before = (tmp_path/'records.jsonl').read_bytes()
    raises(['holds records of something else'], lambda: quick(tmp_path))
    assert (tmp_path/'records.jsonl').read_bytes() == before

def test_a_value_that_fit_takes_from_around_it_counts(tmp_path, monkeypatch):
    quick(tmp_path, fit=fit_lr)
    quick(tmp_path, fit=fit_lr)
    monkeypatch.setitem(globals(), 'LR', .02)
    raises(['records of another fit'], lambda: quick(tmp_path, fit=fit_lr))

def test_functions_are_told_apart_by_what_they_do():
    "Not by how the call is laid out, in which a lambda stands"
    def source(f, **kwargs): return text_of(f)
    a = source(lambda learn, cbs: learn.fit(3, cbs=cbs), seeds=5)
    b = source(lambda learn, cbs: learn.fit(3,
                                            cbs=cbs), seeds=7)  # another remark
    f,g = lambda: Null(1), lambda: Null(2)
    assert a == b == 'lambda learn, cbs: learn.fit(3, cbs=cbs)' and text_of(f) == 'lambda: Null(1)' and text_of(g) == 'lambda: Null(2)'
    assert text_of(partial(Null, 3)) != text_of(partial(Null, 4)) and text_of(len) == text_of(len) and 'more' in text_of(Null)
    class Setup:
        def __init__(self, width): self.width = width
        def learner(self, seed): return self.width
    assert text_of(Setup(3).learner) == text_of(Setup(3).learner) != text_of(Setup(4).learner)
    methods = [as_grid(m).text() for m in (Null(1), Null(2), [Null(1), Null(2)], f, g, VarianceRegularizer, VarianceRegularizer(.1), Grid(VarianceRegularizer, weight=(.1,1.)), partial(VarianceRegularizer, .1))]
    assert len(set(methods)) == len(methods) and not any('0x' in m for m in methods) and as_grid(VarianceRegularizer).text() == 'VarianceRegularizer()'

def test_more_seeds_and_methods_go_on(tmp_path):
    "What is there stays, rows are added, and a method that is no longer named still counts in Holm's correction"
    first = quick(tmp_path, seeds=3)
    kept = (tmp_path/'records.jsonl').read_bytes()
    result = quick(tmp_path, dict(null=Null(3), other=GRID), seeds=5)
    assert (tmp_path/'records.jsonl').read_bytes().startswith(kept) and len(first.records) == 6 and len(result.records) == 10+5+3
    assert len({run_key(r) for r in result.records}) == 18 and list(result.tables[None].index) == ['baseline','null','other']
    result = quick(tmp_path, dict(third=Null(9)), seeds=5)
    t = result.tables[None]
    assert list(t.index) == ['baseline','null','other','third'] and t.p_holm.min() == pytest.approx(min(1, 3*t.p.min()))
    raises(["another method 'other'"], lambda: quick(tmp_path, dict(other=Null(2)), seeds=5))

def test_a_folder_that_was_moved(tmp_path):
    quick(tmp_path/'a')
    os.rename(tmp_path/'a', tmp_path/'b')
    assert len(quick(tmp_path/'b').records) == 4 == lines(tmp_path/'b'/'records.jsonl')

def test_others_experiments_stay(tmp_path):
    exp = Experiment(LEARNER, honest.fit, dict(a=Null(1)))
    experiments['mine'] = exp
    try:
        quick(tmp_path/'a')
        with pytest.raises(RuntimeError): quick(tmp_path/'b', fit=halting_fit)
        assert dict(experiments) == dict(mine=exp)
    finally: experiments.clear()
