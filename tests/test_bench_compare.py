"Comparisons on a learner of one's own: that the choice is honest, that mistakes are told, that it goes on where it stopped, and what it says."
import honest, statistics
from common import *
from common_bench import *
from scipy import stats as scipy_stats
from sklearn.metrics import f1_score, log_loss
from honest import Null, NoValidation, Wait, Work, clock_of_runs, comparison, called, learner_of, make_dls, nulls

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
    assert all(l['runs'] <= l['budget'] and l['tested'] < 9 for l in ls if l['budget']) and {l['strengths'] for l in ls if l['budget']} == {8,12}
    for some in (ls, ls[::2], ls[1::2]):
        c = honest.counts(some)
        assert honest.within(c['better'], c['n']) and honest.within(c['worse'], c['n']), c
    c,page = honest.counts(ls),(Path(__file__).parent.parent/'nbs/39_bench.compare.ipynb').read_text()
    assert f"better than the baseline in {c['better']}, and worse in {c['worse'] or 'none'}" in page
    assert honest.within(5, 200) and honest.within(16, 200) and not honest.within(17, 200) and not honest.within(11, 100)

class Faster(Callback):
    "Truly gains where the rate is far too low"
    def before_batch(self): self.opt.set_hyper('lr', .02)

def slow_fit(learn, cbs): learn.fit(3, 1e-3, cbs=[*cbs, NoValidation()])

@pytest.mark.parametrize('budget', [None, 22])
def test_a_method_that_gains_is_found(budget):
    "Among null methods; where time is short it is not among those that are dropped"
    result = comparison(5, {**nulls(3), 'faster': Faster()}, budget, fit=slow_fit)
    assert called(result)[0] == ['faster'] and 'Better than the baseline, beyond chance: faster by' in result.advice
    assert budget is None or any('was dropped after 1 seed' in n for n in result.notes)

class Watched:
    "Rows that tell who reads them and when"
    seen,stage = [],None
    def __init__(self, n, name, seed): self.name,(self.x,self.y) = name,(torch.randn(n, 10, generator=torch.Generator().manual_seed(seed)), torch.arange(n) % 3)
    def __len__(self): return len(self.y)
    def __getitem__(self, i): Watched.seen.append((Watched.stage,self.name,i)); return self.x[i],self.y[i]

def watched_dl(n, name, seed): return TfmdDL(Watched(n, name, seed), bs=20, shuffle=name == 'train', num_workers=0)

@pytest.mark.parametrize('own_test', [False, True])
def test_a_choice_never_reads_the_judge(tmp_path, monkeypatch, own_test):
    trial = Experiment.trial
    def staged(self, t):
        Watched.stage = t.stage
        try: return trial(self, t)
        finally: Watched.stage = None
    monkeypatch.setattr(Experiment, 'trial', staged)
    dls,test = DataLoaders(watched_dl(60, 'train', 0), watched_dl(30, 'valid', 1), device='cpu'),watched_dl(40, 'test', 2)
    dls.valid.new()                                      # here fastai reads an item, to know what its types are
    Watched.seen = []
    fit = lambda learn, cbs: learn.fit(2, 1e-2, cbs=cbs)  # it validates after each epoch
    quick(tmp_path, dict(a=GRID), lambda seed: learner_with(dls), fit, test=test if own_test else None)
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
    e = {m: of(result, m)[0]['nll'] for m in ['baseline', *result.about['methods']]}
    assert not any(map(failed, result.records)) and e['made'] == e['lamb'] == e['part'] == e['grid'] == e['list'] != e['baseline'] == pytest.approx(e['plain'])
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
    assert 'it halts' in text and '## Failed' in text and result.shown.failed['halts'] == '5 of 5' and 'failed: halts (5 of 5 seeds), with RuntimeError: ' in repr(result) and result.tables[None].pairs['null'] == 5
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
    (dict(methods=dict(null=Null(4))), "method 'null'"), (dict(methods=dict(null=Faster())), "method 'null'"), (dict(methods=dict(null=GRID)), "method 'null'"),
    (dict(metric=accuracy), 'metric'), (dict(test=JUDGE), 'judge'), (dict(fit=fit_longer, methods=dict(null=Faster())), "fit and method 'null'")])
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
    assert a == b == 'lambda learn, cbs: learn.fit(3, cbs=cbs)' and [text_of(h).replace('lambda :', 'lambda:') for h in (f,g)] == ['lambda: Null(1)','lambda: Null(2)']   # with a blank in Python 3.10
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

# Any fastai learner

def one_cycle(learn, cbs): learn.fit_one_cycle(1, 1e-2, cbs=cbs)
def tune(learn, cbs): learn.fine_tune(1, 1e-3, cbs=cbs)
def flat_cos(learn, cbs): learn.fit_flat_cos(1, 1e-2, cbs=cbs)

@functools.lru_cache(maxsize=None)
def folder():
    "60 small images of two colours that differ a little, in folders"
    path,rng = Path(tempfile.mkdtemp()),np.random.default_rng(0)
    for i in range(60):
        c = ('blue','red')[i%2]
        (path/c).mkdir(exist_ok=True)
        x = rng.integers(0, 200, (12,12,3)); x[...,2*(i%2 == 0)] += 40
        PILImage.create(x.astype(np.uint8)).save(path/c/f'{i}.png')
    return path

def tiny_arch(pretrained=False): return nn.Sequential(ConvLayer(3, 8, stride=2), ConvLayer(8, 16, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))

def _images(seed):
    dls = ImageDataLoaders.from_folder(folder(), valid_pct=.4, seed=42, item_tfms=Resize(32), batch_tfms=aug_transforms(size=24), bs=16, num_workers=0, device='cpu')
    return vision_learner(dls, tiny_arch, pretrained=False, metrics=[accuracy, error_rate])

@functools.lru_cache(maxsize=None)
def rows(n=200):
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(a=rng.normal(size=n), b=np.where(rng.random(n) < .1, np.nan, rng.normal(size=n)), shape=rng.choice(['x','y','z'], n)))
    df['price'] = df.a + (df['shape'] == 'x') + rng.normal(size=n)*.3
    df['kind'] = np.where(df.price > .3, 'dear', 'cheap')
    return df

def _table(y, block, **kwargs):
    def learner(seed):
        from fastai.tabular.all import TabularDataLoaders, tabular_learner, Categorify, FillMissing, Normalize
        dls = TabularDataLoaders.from_df(rows(), procs=[Categorify, FillMissing, Normalize], cat_names=['shape'], cont_names=['a','b'], y_names=y, y_block=block(), bs=32,
                                         valid_idx=range(140, 200), device='cpu')
        return tabular_learner(dls, layers=[16,8], **kwargs)
    return learner

@functools.lru_cache(maxsize=None)
def texts():
    rng = np.random.default_rng(0)
    words = [['good','fine','great'],['bad','poor','awful']]
    return pd.DataFrame([dict(text=' '.join(rng.choice([*words[i%2],'the','a','film','plot'], 4 + i%7)), label='+-'[i%2]) for i in range(60)])

def _text(seed):
    from fastai.text.all import TextDataLoaders, text_classifier_learner, AWD_LSTM, awd_lstm_clas_config
    dls = TextDataLoaders.from_df(texts(), valid_pct=.3, seed=1, bs=8, device='cpu', tok_tfm=BaseWords(), num_workers=0)
    config = dict(awd_lstm_clas_config, n_hid=24, emb_sz=16, n_layers=2)
    return text_classifier_learner(dls, AWD_LSTM, config=config, pretrained=False, metrics=accuracy)

class BaseWords:
    "A tokenizer that splits at spaces"
    def __call__(self, items): return (t.split(' ') for t in items)

def _transformer(seed):
    transformers = pytest.importorskip('transformers')
    config = transformers.BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=12, num_labels=2)
    class Logits(nn.Module):
        def __init__(self): super().__init__(); self.bert = transformers.BertForSequenceClassification(config)
        def forward(self, x): return self.bert(x).logits
    g = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 2
    x = torch.randint(10, (60,8), generator=g) + y[:,None]*5
    return Learner(tensor_dls((x[:40],y[:40]), (x[40:],y[40:]), bs=8, device='cpu'), Logits(), loss_func=CrossEntropyLossFlat(), metrics=F1Score())

def _multi(seed):
    x,_ = DLS.train.dataset.tensors
    y = torch.stack([x[:,0] > 0, x[:,1] > .2], 1).float()
    dls = tensor_dls((x[:160],y[:160]), (x[160:],y[160:]), vocab=['a','b'], bs=32, device='cpu')
    return Learner(dls, nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 2)), loss_func=BCEWithLogitsLossFlat(), metrics=partial(accuracy_multi, thresh=.4))

def _unet(seed):
    files = get_image_files(folder())
    block = DataBlock((ImageBlock, MaskBlock(['no','yes'])), splitter=RandomSplitter(.3, seed=1), batch_tfms=[Flip()], item_tfms=Resize(32, method='squish'),
                      get_y=lambda f: (np.asarray(PILImage.create(f))[...,0] > 100).astype(np.uint8))
    return unet_learner(block.dataloaders(files[:20], bs=4, num_workers=0, device='cpu'), tiny_arch, pretrained=False, n_out=2, metrics=DiceMulti())

def off_by_half(inp, targ): return ((inp.argmax(-1) - targ).abs().float() - .5).mean()

class Both(Module):
    def __init__(self): self.head = nn.Linear(10, 3)
    def forward(self, a, b): return self.head(torch.cat([a,b], 1))

def _items(seed):
    "fastai's own loaders over lists of items, of which all but the last part are inputs; they do not say so"
    x,y = DLS.train.dataset.tensors
    items = list(zip(x[:,:4], x[:,4:], y))
    return learner_with(DataLoaders(DataLoader(items[:90], bs=16, shuffle=True), DataLoader(items[90:], bs=16), device='cpu'), Both())

def _plain(**kwargs): return lambda seed: learner_with(**kwargs)

CASES = {   # learner, fit, metric, methods; the figure and whether higher is better
    'images':         (_images, tune, None, dict(mixup=MixUp(.4)), None, False),
    'table, classes': (_table('kind', CategoryBlock, metrics=accuracy), one_cycle, None, dict(vr=VarianceRegularizer(.1)), None, False),
    'table, numbers': (_table('price', RegressionBlock, metrics=rmse), one_cycle, 'rmse', dict(vr=VarianceRegularizer(.1, classwise=False)), 'rmse', False),
    'text':           (_text, one_cycle, None, dict(null=Null(3)), None, False),
    'transformer':    (_transformer, flat_cos, 'f1_score', dict(null=Null(3)), 'f1_score', True),
    'multi-label':    (_multi, flat_cos, 'accuracy_multi', dict(null=Null(3)), 'accuracy_multi', True),
    'unet':           (_unet, tune, DiceMulti(), dict(null=Null(3)), 'dice_multi', True),
    'two inputs':     (_items, one_cycle, None, dict(vr=VarianceRegularizer(.1), null=Null(3)), None, False),
    'no metric':      (_plain(metrics=None), one_cycle, None, dict(null=Null(3)), 'valid_loss', False),
    'own metric':     (_plain(), one_cycle, off_by_half, dict(null=Null(3)), 'off_by_half', True)}

@pytest.mark.parametrize('case', CASES)
def test_any_learner(tmp_path, case):
    make,fit,metric,methods,figure,higher = CASES[case]
    result = quick(tmp_path, {**methods, 'grid': Grid(Null, n=3, more=(0,20))}, make, fit, metric=metric, held_out=.3)
    bad = [r['failed'] for r in result.records if failed(r)]
    assert not bad and {r['stage'] for r in result.records} == {'strength','test'}
    for r in result.records:
        assert math.isfinite(r['error']) and (r.get('figure'),r.get('higher',False)) == (figure,higher) and r['steps'] > 0
        assert ('nll' in r) == (case not in ('table, numbers','multi-label','unet'))
    a = rows_by(result.records)
    assert len(set(errors(result, 'baseline').values())) > 1 or case in ('images','text','transformer')   # of few samples
    assert result.advice and result.shown.shape[0] >= 1 + len(methods)

def test_a_figure_of_which_higher_is_better(tmp_path):
    "Values from scikit-learn: the F1 score and the log loss of the same trained learner, and the choice with the highest score"
    exp = Experiment(_plain(metrics=F1Score(average='macro')), honest.fit, dict(a=GRID), 'f1_score')
    experiments['e'] = exp
    try:
        rec = Trial('e', 'baseline', {}, 4).measured()
        learn = exp.start(4)
        learn.add_cbs([]); quietly(learn, lambda: honest.fit(learn, []))
        probs,y = learn.get_preds(dl=learn.dls.valid)
        assert rec['error'] == pytest.approx(f1_score(y, probs.argmax(1), average='macro'), abs=1e-6) and rec['higher'] and rec['figure'] == 'f1_score'
        assert rec['nll'] == pytest.approx(log_loss(y, probs), abs=1e-5) and rec['steps'] == 9
    finally: experiments.clear()
    result = quick(tmp_path, dict(a=GRID), exp.learner, metric='f1_score')
    tried = {json.dumps(r['args']): r['error'] for r in of(result, 'a', stage='strength')}
    assert json.dumps(result.about['chosen']['a']) == max(tried, key=tried.get) and result.choices.taken['a'] == f"more={result.about['chosen']['a']['more']}"
    d = [errors(result, 'a')[s] - errors(result, 'baseline')[s] for s in (0,1)]
    assert result.tables[None].gain['a'] == pytest.approx(np.mean(d))

def test_which_way_a_metric_goes():
    for m in (rmse, exp_rmspe, mse, mae, msle, error_rate, msle): assert is_lower_better(metric_name(mk_metric(m)))
    for m in (accuracy, F1Score(), RocAuc(), R2Score(), Dice(), BalancedAccuracy()): assert not is_lower_better(metric_name(mk_metric(m)))

def test_a_test_loader_judges(tmp_path):
    "As a loader and as a function of the learner; what was set by hand in the loaders stays, and measures see the judge"
    seen = []
    def learner(seed):
        dls = copy(DLS); dls.loaders = list(DLS.loaders); dls.c = 3
        return learner_with(dls)
    def measure(learn): seen.append((learn.dls.c, len(learn.dls.valid.dataset))); return len(learn.dls.valid.dataset)
    a = quick(tmp_path/'a', learner=learner, test=JUDGE, measures=dict(n=measure))
    b = quick(tmp_path/'b', learner=learner, test=lambda learn: JUDGE)
    assert set(seen) == {(3,240)} and {r['n'] for r in a.records} == {240} and errors(a, 'null') == errors(b, 'null') != errors(quick(tmp_path/'c', learner=learner), 'null')

def test_the_baseline_does_not_depend_on_what_stands_beside_it(tmp_path):
    a = quick(tmp_path/'a', dict(null=Null(3)))
    b = quick(tmp_path/'b', dict(many=[Null(5), Faster()], grid=GRID, smooth=LabelSmoothingCrossEntropyFlat(), null=Null(3)))
    for m in ('baseline','null'): assert [r['metrics'] for r in of(a, m)] == [r['metrics'] for r in of(b, m)]

# Time

MANY = {f'm{i}': Grid(Null, n=i, more=(0,20,40)) if i < 3 else Null(i) for i in range(1, 6)}

def cut_short(folder, after, budget):
    "The same comparison, stopped in run number `after`"
    trial,n = Experiment.trial,itertools.count(1)
    def stop(self, t):
        if next(n) == after: raise KeyboardInterrupt
        return trial(self, t)
    Experiment.trial = stop
    try:
        with pytest.raises(KeyboardInterrupt): comparison(3, MANY, budget, folder)
    finally: Experiment.trial = trial

@pytest.mark.parametrize('budget,after', [(None,9), (18,3), (18,11)])
def test_stopped_and_gone_on_with(tmp_path, budget, after):
    "The same runs, choices and table as without an interruption"
    whole = comparison(3, MANY, budget, tmp_path/'a'/'x')
    cut_short(tmp_path/'b'/'x', after, budget)
    assert lines(tmp_path/'b'/'x'/'records.jsonl') == after-1
    again = comparison(3, MANY, budget, tmp_path/'b'/'x')
    assert rows_by(whole.records) == rows_by(again.records) and whole.about['chosen'] == again.about['chosen'] and len(whole_lines(tmp_path/'b'/'x'/'records.jsonl')) == len(whole.records)
    assert whole.notes == again.notes and whole.tables[None][['gain','p_holm']].equals(again.tables[None][['gain','p_holm']])

def test_the_same_budget_again_and_a_larger_one(tmp_path):
    "Nothing more is done; with more time the grids are whole, and runs of another choice than the last do not count"
    first = comparison(3, MANY, 10, tmp_path)
    assert len(first.records) == 10 and any('the middle one alone is used' in n for n in first.notes) and first.about['chosen']['m1'] == dict(more=20)
    same = comparison(3, MANY, 10, tmp_path)
    assert rows_by(same.records) == rows_by(first.records) and same.about['chosen'] == first.about['chosen'] and same.notes == first.notes
    more = comparison(3, MANY, 100, tmp_path)
    t,chosen = more.tables[None],more.about['chosen']
    assert (t.seeds == 5).all() and len(t) == 6 and not any('want of time' in n or 'dropped' in n or 'suffice' in n for n in more.notes)
    for m in ('m1','m2'):
        assert {r['args']['more'] for r in of(more, m, stage='strength')} == {0,20,40}
        assert t.error[m] == pytest.approx(np.mean([r['error'] for r in of(more, m, stage='test') if r['args'] == chosen[m]]))
    other = [r for m in ('m1','m2') for r in of(first, m, stage='test') if r['args'] != chosen[m]]
    assert len(more.records) == 30 + 6 + len(other)      # the runs of the first choice stay on record

def test_what_is_dropped_gained_least(tmp_path):
    "After the first seed those go that gained least in it, and the rest have all seeds"
    result = comparison(3, MANY, 26, tmp_path)
    t = result.tables[None].drop('baseline')
    e = {m: errors(result, m) for m in ['baseline', *t.index]}
    gains = {m: e['baseline'][30] - e[m][30] for m in t.index}
    kept = [m for m in t.index if t.seeds[m] == 5]
    assert kept and len(kept) < 5 and min(gains[m] for m in kept) >= max(gains[m] for m in t.index if m not in kept)
    assert len(result.records) <= 26 and all(sum(f'{m} was dropped after' in n for n in result.notes) == (m not in kept) for m in t.index)
    assert t.p[kept].notna().all() and t.p.isna().sum() == 5-len(kept) and t.p_holm.min() == pytest.approx(min(1, 5*t.p.min()))

def test_time_for_the_baseline_alone(tmp_path):
    result = comparison(3, MANY, .5, tmp_path)
    assert [r['method'] for r in result.records] == ['baseline'] and 'nothing to compare' in result.advice
    assert any('baseline has 1 of 5 seeds' in n and 'm5 has 0 of 5 seeds' in n for n in result.notes)
    dropped = [n for n in result.notes if 'dropped' in n]    # before a run of theirs: nothing is known of their gains
    assert dropped and all(n.endswith('was dropped: the time does not suffice for all.') for n in dropped)
    assert '1 run of 0.00 hours, on cpu' in result.markdown()

def slow_steps(learn, cbs): learn.fit(1, 1e-2, cbs=[*cbs, NoValidation(), Wait(.1)])   # three steps

def test_a_budget_in_seconds(tmp_path):
    "It ends in time and says what was left out; again it does nothing, and with more time it goes on"
    def call(budget):
        start = time.time()
        return quick(tmp_path, MANY, fit=slow_steps, seeds=5, budget=budget),time.time()-start
    first,took = call('5s')
    assert took < 6 and 3 < len(first.records) < 36 and any('dropped' in n or 'suffice' in n for n in first.notes) and first.about['spent'] < 6
    again,took = call('5s')
    assert rows_by(again.records) == rows_by(first.records) and took < 2
    assert len(call(7)[0].records) > len(first.records)

def short_fit(learn, cbs): learn.fit(1, 1e-2, cbs=[*cbs, Wait(.03)])
SCRIPT = '''
import sys
from test_bench_compare import *
if __name__ == '__main__': compare(LEARNER, short_fit, dict(a=GRID, b=Null(5)), seeds=6, out=sys.argv[1], jobs=2)
'''

def test_killed_with_two_jobs(tmp_path):
    "SIGKILL loses and doubles nothing, and the figures are those of one process"
    (tmp_path/'mine.py').write_text(SCRIPT)
    out = tmp_path/'two'/'out'
    def begin():
        said = tmp_path/'said.txt'
        p = subprocess.Popen([sys.executable, '-W', 'ignore', tmp_path/'mine.py', out], stdout=open(said, 'ab'), stderr=subprocess.STDOUT, start_new_session=True,
                             env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join([str(Path(__file__).parent), *sys.path])})
        p.said = said
        return p
    p = begin()
    try:
        wait(lambda: lines(out/'records.jsonl') >= 6, p)
        assert kill(p) == -signal.SIGKILL and 6 <= lines(out/'records.jsonl') < 21
        before = (out/'records.jsonl').read_bytes()
        p = begin()
        assert p.wait(180) == 0, p.said.read_text()
    finally:
        if p.poll() is None: kill(p)
    assert (out/'records.jsonl').read_bytes().startswith(before[:before.rfind(b'\n')+1]) and len(whole_lines(out/'records.jsonl')) == 21
    assert (out/'report.md').exists()
    quick(tmp_path/'one'/'out', dict(a=GRID, b=Null(5)), fit=short_fit, seeds=6)
    assert figures(whole_lines(out/'records.jsonl').values()) == figures(whole_lines(tmp_path/'one'/'out'/'records.jsonl').values())

# Cost

def fit_scaled(learn, cbs, scale=1): learn.fit(round(4*scale), 1e-2, cbs=[*cbs, NoValidation(), Work(.01)])

def test_equal_cost(tmp_path):
    "A method whose steps take longer is compared with a baseline that trains for as much longer; the column against scipy"
    result = quick(tmp_path, dict(slow=Work(.02), null=Null(3)), fit=fit_scaled, seeds=5)
    plain = {m: {r['seed']: r for r in of(result, m) if 'scale' not in r} for m in ('baseline','slow')}
    cost = statistics.median(plain['slow'][s]['step_ms']/plain['baseline'][s]['step_ms'] for s in range(5))
    assert costs_of(result.test[None])['slow'] == pytest.approx(cost, abs=.1) and 1.5 < cost < 4
    scale = costs_of(result.test[None])['slow']
    long = {r['seed']: r for r in of(result, 'baseline', scale=scale)}
    assert set(long) == set(range(5)) and all(long[s]['label'] == f'baseline ×{scale:g}' and long[s]['steps'] == 3*round(4*scale) for s in range(5))
    e = result.at_equal_cost.loc['slow']
    t = scipy_stats.ttest_rel([long[s]['error'] for s in range(5)], [plain['slow'][s]['error'] for s in range(5)])
    low,high = t.confidence_interval(.95)
    assert (e.gain_cost,e.low_cost,e.high_cost) == pytest.approx((np.mean([long[s]['error']-plain['slow'][s]['error'] for s in range(5)]),low,high))
    assert result.shown['gain at equal cost']['slow'] == f'{e.gain_cost:.2f} ({low:.2f} to {high:.2f}), ×{scale:g}'
    rounded = round(4*scale)/4
    assert any('to train' in n for n in result.notes) == (abs(rounded-scale) > .05*scale)

def test_what_others_do_is_no_cost(tmp_path):
    "A step in which the process only waits costs nothing, as one that waits for a busy processor"
    costs = costs_of(quick(tmp_path, dict(works=Work(.02), waits=Wait(.02)), fit=fit_scaled, seeds=3).test[None])
    assert costs['works'] > 1.5 and costs.get('waits', 1.) < 1.3

def test_a_longer_training_that_fit_rounds_away(tmp_path, monkeypatch):
    "It is told: at 1.3 times the cost, one epoch stays one"
    from latentreg_fastai.bench import plan
    monkeypatch.setattr(plan, 'costs_of', lambda records: dict(null=1.3))
    def fit(learn, cbs, scale=1): learn.fit(round(scale), 1e-2, cbs=[*cbs, NoValidation()])
    result = quick(tmp_path, fit=fit)
    assert any('that was to train 1.3 times as long trained 1.00 times as long' in n for n in result.notes)

def test_no_scale_no_row(tmp_path):
    result = quick(tmp_path, dict(slow=Wait(.01)))
    assert 'gain at equal cost' not in result.shown and any('no comparison at equal cost: `fit` takes no `scale`' in n for n in result.notes)

def record(m, s, error, stage='test', **kw):
    return dict(experiment='e', method=m.split(' ×')[0], args={}, seed=s, stage=stage, error=error, step_ms=10., steps=10, images_s=1., memory_mb=1., seconds=1.,
                device='cpu', threads=1, versions={}) | ({} if m == m.split(' ×')[0] else dict(label=m, scale=float(m.split(' ×')[1]))) | kw

def written(folder, rows, more=(), chosen=None, **of_row):
    "A comparison from errors by row and seed"
    recs = [record(m, s, e, **of_row.get(m.replace(' ×', '_'), {})) for m,es in rows.items() for s,e in enumerate(es)] + list(more)
    folder.mkdir(exist_ok=True)
    (folder/'records.jsonl').write_text(''.join(json.dumps(r)+'\n' for r in recs))
    methods = {m: m for m in rows if not m.startswith('baseline')}
    (folder/'experiment.json').write_text(json.dumps(dict(title='T', name='e', seeds=[0], held_out=.2, methods=methods, metric=None, notes=[], chosen=chosen or {})))
    return Comparison(folder)

BASE = [10.,12.,11.,13.,9.]
def minus(*d): return [b-x for b,x in zip(BASE, d)]
GOOD,ZERO,BAD_ROW = minus(2.,2.1,1.9,2.,2.2),minus(.5,-.6,.1,-.2,.3),minus(-2.,-2.1,-1.9,-2.,-2.2)

def test_advice_on_what_is_better_and_worse(tmp_path):
    "Numbers from scipy, by hand"
    a = written(tmp_path, dict(baseline=BASE, good=GOOD, none=ZERO, bad=BAD_ROW)).advice
    low,high = scipy_stats.ttest_rel(BASE, GOOD).confidence_interval(.95)
    assert f'Better than the baseline, beyond chance: good by 2.04 points ({low:.2f} to {high:.2f}, 5 of 5 seeds).' in a
    assert f'Worse than the baseline, beyond chance: bad by 2.04 points ({-high:.2f} to {-low:.2f}, 0 of 5 seeds).' in a and 'none' not in a

def test_advice_where_nothing_is_certain(tmp_path):
    a = written(tmp_path/'a', dict(baseline=BASE, none=ZERO)).advice
    assert a.startswith('No difference to the baseline is beyond chance. The largest mean gain is that of none by 0.02 points') and 'seeds would show it' not in a
    z = np.array([1.,-1.,.5,-.5,0.]); z = z/z.std(ddof=1)
    a = written(tmp_path/'b', dict(baseline=BASE, some=minus(*(.5+z)))).advice
    assert 'if that gain is real, about 34 seeds would show it' in a      # half a deviation, at 0.05: 34 in the tables of Cohen (1988)
    a = written(tmp_path/'c', dict(baseline=BASE, worse=minus(-.5,.1,-.3,-.4,.2))).advice
    assert a == 'No method was better than the baseline on average: train without one.'
    a = written(tmp_path/'d', dict(baseline=BASE[:4], good=GOOD[:4])).advice
    assert a.startswith('With fewer than 5 seeds nothing is tested. The largest mean gain is that of good by 2.00 points') and 'beyond chance:' not in a

def test_advice_counts_all_methods(tmp_path):
    "One of nine at p = 0.02 is not called better, and alone it is"
    d = (.6,.2,1.,.5,.9)
    assert .005 < scipy_stats.ttest_rel(BASE, minus(*d)).pvalue < .03
    assert 'Better than the baseline' in written(tmp_path/'a', dict(baseline=BASE, one=minus(*d))).advice
    assert 'Better than the baseline' not in written(tmp_path/'b', dict(baseline=BASE, one=minus(*d), **{f'n{i}': ZERO for i in range(8)})).advice

def test_advice_on_the_edge_of_a_grid(tmp_path):
    tried = [record('good', 1000, 5.-i, 'strength', args=dict(weight=w), held_out=.2) for i,w in enumerate((.1,1.,10.))]
    a = written(tmp_path/'a', dict(baseline=BASE, good=GOOD), tried, dict(good=dict(weight=10.)), good=dict(args=dict(weight=10.))).advice
    assert 'At the end of what was tried lies `weight=10` of good: try further values there.' in a
    a = written(tmp_path/'b', dict(baseline=BASE, good=GOOD), tried, dict(good=dict(weight=1.)), good=dict(args=dict(weight=1.))).advice
    assert 'At the end' not in a
    flat = [{**r, 'error': 5.} for r in tried]           # the first is taken, and no further value would tell more
    a = written(tmp_path/'c', dict(baseline=BASE, good=GOOD), flat, dict(good=dict(weight=.1)), good=dict(args=dict(weight=.1))).advice
    assert 'At the end' not in a

def test_advice_on_cost(tmp_path):
    rows = dict(baseline=BASE, good=GOOD)
    a = written(tmp_path/'a', {**rows, 'baseline ×2': minus(2.,2.,2.1,1.9,2.2)}, good=dict(step_ms=20.)).advice
    assert 'A step of good takes 2.00 times as long; beside a baseline that trains 2 times as long it is not better beyond chance' in a
    a = written(tmp_path/'b', {**rows, 'baseline ×2': minus(.5,.4,.6,.5,.5)}, good=dict(step_ms=20.)).advice
    assert 'it is still better (1.54 (' in a
    assert 'A step of' not in written(tmp_path/'c', rows, good=dict(step_ms=10.2)).advice

def test_advice_with_nothing_to_say(tmp_path):
    bad = {k: v for k,v in record('baseline', 0, 1.).items() if k != 'error'} | dict(failed='a reason')
    assert written(tmp_path/'a', dict(m=[]), [bad]).advice == 'No run of the comparison has ended well.'
    assert 'nothing to compare' in written(tmp_path/'b', dict(baseline=BASE)).advice and 'nothing to compare' in written(tmp_path/'c', dict(good=GOOD)).advice
    raises(['there is no comparison in'], lambda: Comparison(tmp_path/'none'))

@pytest.mark.parametrize('jobs', [1,2])
def test_loaders_with_workers(tmp_path, jobs):
    "As fastai's have them by default where there are cores; they run within the processes of the comparison, with the same figures"
    def learner(seed):
        x = torch.randn(60, 10, generator=torch.Generator().manual_seed(0))
        items = [(a, int(a[0] > 0)) for a in x]
        dls = DataLoaders(DataLoader(items[:40], bs=10, shuffle=True, num_workers=1), DataLoader(items[40:], bs=20, num_workers=1), device='cpu')
        return Learner(dls, nn.Linear(10, 2), loss_func=CrossEntropyLossFlat(), metrics=error_rate)
    result = compare(learner, lambda learn, cbs: learn.fit(1, 1e-2, cbs=cbs), dict(null=Null(1)), seeds=1, out=tmp_path/'x', jobs=jobs)
    assert not any(map(failed, result.records)) and len(result.records) == 2

@pytest.mark.parametrize('jobs', [1,2])
def test_what_is_saved_is_of_one_training(tmp_path, monkeypatch, jobs):
    "`SaveModelCallback` in `fit`: no training finds, or leaves, another's best model, and what `learner` reads is where it was"
    monkeypatch.chdir(tmp_path)
    def learner(seed):
        learn = LEARNER(seed)
        learn.save('start') if not (learn.path/learn.model_dir/'start.pth').exists() else learn.load('start')
        return learn
    def fit(learn, cbs):
        own = Path(learn.path/learn.model_dir)
        assert own.is_dir() and not [*own.iterdir()], [*own.iterdir()]
        learn.fit(2, 1e-2, cbs=[*cbs, SaveModelCallback(monitor='valid_loss', fname='best')])
        assert [f.name for f in own.iterdir()] == ['best.pth']
    result = compare(learner, fit, dict(null=Null(1)), seeds=2, out=tmp_path/'x', jobs=jobs)
    assert len(result.records) == 4 and not any(map(failed, result.records)), [r.get('failed') for r in result.records]
    assert [f.name for f in (tmp_path/'models').iterdir()] == ['start.pth']

def test_a_process_without_children_loads_by_itself(monkeypatch):
    "As a worker of Dask is one; suites and comparisons alike"
    import multiprocessing
    dls = DataLoaders(DataLoader(range(8), bs=2, num_workers=2), DataLoader(range(8), bs=2, num_workers=2), device='cpu')
    seed_training(dls, 0)
    assert [dl.fake_l.num_workers for dl in dls.loaders] == [2,2]
    monkeypatch.setattr(multiprocessing, 'current_process', lambda: SimpleNamespace(daemon=True))
    seed_training(dls, 0)
    assert [dl.fake_l.num_workers for dl in dls.loaders] == [0,0] and len([*dls.train]) == 4

# Dropping, suggesting, and what the table does not say

def in_runs(out, methods, budget, seeds):
    "A comparison whose time goes on by one with each run"
    with clock_of_runs(), contextlib.redirect_stdout(io.StringIO()):
        return compare(learner_of(make_dls(3)), honest.fit, methods, seeds=seeds, out=out, budget=budget)

EIGHT = {f'm{i}': Null(i) for i in range(1, 9)}

def test_at_most_half_is_dropped_at_a_time(tmp_path):
    "26 runs: a seed of all nine rows, a seed of five, and three seeds of four"
    result = in_runs(tmp_path, EIGHT, 26, 5)
    t = result.tables[None].drop('baseline')
    assert len(result.records) == 26 and sorted(t.seeds) == [1,1,1,1,2,5,5,5]
    e = {m: errors(result, m) for m in ['baseline', *t.index]}
    gain = lambda m,n: np.mean([e['baseline'][s]-e[m][s] for s in range(n)])
    first = sorted(t.index, key=lambda m: gain(m, 1))
    assert set(first[:4]) == set(t.index[t.seeds == 1]) and min(first[4:], key=lambda m: gain(m, 2)) == t.index[t.seeds == 2][0]

def test_five_seeds_come_first(tmp_path):
    "Ten are asked for; all rows have the five with which differences are tested before any is dropped for the rest"
    t = in_runs(tmp_path, EIGHT, 60, 10).tables[None].drop('baseline')
    assert t.seeds.min() == 5 and t.seeds.max() == 10 and t.p.notna().all()

def test_what_cannot_train_is_not_suggested(tmp_path):
    "Labels of pixels: the class-wise penalties need one label a sample, and fastai's label smoothing the right axis"
    def learner(seed):
        x = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        y = (x[:,0] > 0).long()
        dls = tensor_dls((x[:30], y[:30]), (x[30:], y[30:]), vocab=['no','yes'], bs=10, device='cpu')
        model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
        return Learner(dls, model, loss_func=CrossEntropyLossFlat(axis=1), metrics=foreground_acc)
    result = quick(tmp_path, 'suggested', learner, lambda learn, cbs: learn.fit(1, 1e-2, cbs=cbs), seeds=1)
    left_out = [n for n in result.notes if 'cannot be used here: ' in n]
    assert len(left_out) == 3 and any(n.startswith('cw-VR cannot be used here') for n in left_out) and not any(n.startswith('cw-VR is tried') for n in result.notes)
    assert list(result.tables[None].index) == ['baseline','manifold mixup'] and not any(map(failed, result.records))

def test_memory_is_shown_where_it_can_be_measured(tmp_path):
    "On a CPU the first training of a process pays for what later ones find there"
    rows = dict(baseline=BASE, good=GOOD)
    assert 'memory' not in written(tmp_path/'a', rows).shown
    assert 'memory' in written(tmp_path/'b', rows, **{m: dict(memory_mb=100.) for m in rows}).shown

def test_a_longer_baseline_says_how_long_it_trained(tmp_path):
    rows,cost = {'baseline': BASE, 'good': GOOD, 'baseline ×2': minus(.5,.4,.6,.5,.5)},dict(good=dict(step_ms=20.))
    cell = lambda at,steps: written(tmp_path/at, rows, baseline_2=dict(steps=steps), **cost).shown.loc['good','gain at equal cost']
    assert cell('a', 20).endswith('×2') and cell('b', 10).endswith('×2 that trained ×1.00') and cell('c', 17).endswith('×2 that trained ×1.70')
