"The search for methods to use together: what it finds, what it leaves out, that it goes on after a kill, and what the tables say."
from common_bench import *
from latentreg_fastai.bench.cocktail import *
from honest import clock_of_runs

optuna = pytest.importorskip('optuna')
TRUE = torch.linspace(-1, 1, 8)

class Help(Callback):
    "Brings one of the model's weights to the truth at the end, all the way with `by=1`"
    def __init__(self, i, by=1.): self.i,self.by = i,by
    def after_fit(self):
        w = self.learn.model.weight.data[0]
        far = 1 - math.exp(-math.log10(self.by)**2)
        w[self.i] = TRUE[self.i] + far*(w[self.i] - TRUE[self.i])

class Null(Callback):
    "Changes what is random, and nothing on average"
    def __init__(self, by=1.): self.by = by
    def after_fit(self): self.learn.model.weight.data += .05*torch.randn(1, 8)

class Refuses(Null):
    "Cannot be used beside the class that `other` names"
    other = 'Help'
    def before_train(self):
        if any(type(cb).__name__ == self.other for cb in self.learn.cbs): raise ValueError(f'Refuses: {self.other} has no meaning beside it')

class Fails(Callback):
    def before_train(self): raise RuntimeError('Fails: it never works')

def learner(seed, higher=False):
    x = torch.randn(1200, 8, generator=torch.Generator().manual_seed(0))
    y = x @ TRUE[:,None]
    dls = tensor_dls((x[:1000],y[:1000]), (x[1000:],y[1000:]), bs=400, device='cpu')
    learn = Learner(dls, nn.Linear(8, 1, bias=False), loss_func=MSELossFlat(), metrics=fit_of if higher else None, cbs=[])
    learn.remove_cb(ProgressCallback)
    return learn

def fit_of(pred, y): return 10 - F.mse_loss(pred, y)     # higher is better
fit_of.__name__ = 'r_squared'

def fit(learn, cbs): learn.fit(1, 1e-5, cbs=cbs)

GOOD = dict(one=Grid(Help, 0, by=(.1,10.)), two=Grid(Help, 7, by=(.1,1.,10.)))
NULLS = {f'null {i}': Grid(Null, by=(.1,1.)) for i in range(4)}

def compared(out, methods=None, seeds=2, **kwargs):
    return compare(kwargs.pop('learner', learner), fit, {**GOOD, **NULLS} if methods is None else methods, seeds=seeds, out=out, **{'combine': 24, **kwargs})

def sets(res): return [(r['label'],r['args'],r['error']) for r in res.records if r.get('stage') == 'search']

@pytest.fixture(scope='module')
def found(tmp_path_factory): return compared(tmp_path_factory.mktemp('found')/'c', seeds=5)

def test_it_finds_what_helps(found):
    "The two that help are in the cocktail, near their best strengths, which lie within the grid's ends, and at most half of the others"
    best = next(r['args'] for r in found.test[None] if r['method'] == 'cocktail')
    assert {'one','two'} <= best.keys() and sum(k.startswith('null') for k in best) <= 2
    assert all(abs(math.log10(best[k]['by'])) < .6 for k in ('one','two'))
    t = found.tables[None]
    assert t.error.idxmin() == 'cocktail' and t.gain['cocktail'] > t.gain[['one','two']].max()

def test_how_the_search_goes(found):
    "An empty set, the ingredients that helped alone, then what is drawn; held out, with other seeds than the comparison's, each set once"
    recs = [r for r in found.records if r['stage'] == 'search']
    assert [r['label'] for r in recs] == [f'cocktail {i}' for i in range(24)] and recs[0]['args'] == {}
    assert {r['seed'] for r in recs} == {1000} and {r['held_out'] for r in recs} == {.2}
    alone = {m: min((r['error'],r['args']['by']) for r in found.records if r['stage'] == 'strength' and r['method'] == m) for m in (*GOOD,*NULLS)}
    assert recs[1]['args'] == {m: dict(by=by) for m,(e,by) in alone.items() if e < recs[0]['error']}
    assert len({json.dumps(r['args']) for r in recs}) == 24
    ends = {m: (min(g.tried['by']),max(g.tried['by'])) for m,g in {**GOOD,**NULLS}.items()}
    drawn = [(v['by'],*ends[m]) for r in recs for m,v in r['args'].items()]
    assert all(a <= v <= b for v,a,b in drawn) and len({v for v,_,_ in drawn}) > 20     # between the ends
    best = min((r for r in recs if r['args']), key=lambda r: r['error'])
    assert all(r['args'] == best['args'] for r in found.test[None] if r['method'] == 'cocktail')

def test_leaving_one_out(found):
    "Against differences by hand; the rows stand apart, and Holm counts the cocktail as one method more"
    whole = {r['seed']: r for r in found.test[None] if r['method'] == 'cocktail'}
    best,e = whole[0]['args'],found.ingredients
    assert [*e.index] == [*best] and not any('−' in m for m in found.tables[None].index)
    for m in best:
        mine = {r['seed']: r for r in found.records if r['stage'] == 'leave-one-out' and r['label'] == f'cocktail − {m}'}
        assert {*mine} == {*range(5)} and all(r['args'] == {k: v for k,v in best.items() if k != m} for r in mine.values())
        d = np.array([mine[s]['error'] - whole[s]['error'] for s in range(5)])
        half = 2.7764451*d.std(ddof=1)/5**.5             # t with 4 degrees of freedom
        close(e.loc[m,['without','adds','low','high']].tolist(), [np.mean([r['error'] for r in mine.values()]),d.mean(),d.mean()-half,d.mean()+half], 1e-6)
    assert e.adds['one'] > 0 and e.adds['two'] > 0
    t = found.tables[None]
    assert len(found.about['methods']) == 7 and t.p_holm.min() == pytest.approx(7*t.p.min())

def test_what_the_report_says(found):
    best = next(r['args'] for r in found.test[None] if r['method'] == 'cocktail')
    text = found.markdown()
    for s in ('What each ingredient of the cocktail adds', 'The best sets of the search', 'The cocktail is', args_text(best)): assert s in text
    single = found.tables[None].gain.drop('cocktail').idxmax()
    assert f'better on average than {single}, the best of the methods alone' in found.advice and 'adds most' in found.advice
    assert 'it adds' in repr(found) and '| it adds |' in found._repr_markdown_()
    best_first = sets_table(found.records)
    assert best_first.index[0] == args_text(best) and len(best_first) == 10
    assert Comparison(found.folder).advice == found.advice

def test_it_goes_on_after_a_kill(found, tmp_path):
    "Cut off in the middle of the search, and once more in the judgement"
    shutil.copytree(found.folder, tmp_path/'c')
    file = tmp_path/'c'/'records.jsonl'
    all_of,about = file.read_text().splitlines(keepends=True),found.about
    chosen = {k: v for k,v in about['chosen'].items() if k != 'cocktail'}
    for n,then in ((20,{**about, 'chosen': chosen}),(60,about)):
        file.write_text(''.join(all_of[:n]))
        (tmp_path/'c'/'experiment.json').write_text(json.dumps(then))
        again = compared(tmp_path/'c', seeds=5)
        assert sets(again) == sets(found) and again.tables[None].error.tolist() == found.tables[None].error.tolist()
        assert whole_lines(file).keys() == whole_lines(found.folder/'records.jsonl').keys()

def test_an_ingredient_alone_that_was_better_is_named(tmp_path):
    "Sets of ones that spoil what the others do"
    res = compared(tmp_path/'c', dict(one=Grid(Help, 0, by=(1.,10.)), **NULLS), combine=3)
    best = next(r['args'] for r in res.test[None] if r['method'] == 'cocktail')
    figure = min(e for _,a,e in sets(res) if a == best)
    alone = min((r['error'],r['method']) for r in res.records if r['stage'] == 'strength')
    assert any(f'{alone[1]} alone was better still' in n for n in res.notes) == (alone[0] < figure)

def test_a_cocktail_that_was_judged_stays(found, tmp_path):
    shutil.copytree(found.folder, tmp_path/'c')
    n = lines(tmp_path/'c'/'records.jsonl')
    compared(tmp_path/'c', seeds=5, combine=60)
    assert lines(tmp_path/'c'/'records.jsonl') == n

def test_in_processes(tmp_path):
    "Sets are drawn two at a time, and after a kill between two of them they are the same"
    run = lambda: compared(tmp_path/'c', GOOD, jobs=2, combine=7, seeds=1)
    by_number = lambda r: int(r[0].split()[-1])
    first,file = sorted(sets(run()), key=by_number),tmp_path/'c'/'records.jsonl'
    assert [l for l,_,_ in first] == [f'cocktail {i}' for i in range(7)]
    keep = [l for l in file.read_text().splitlines(keepends=True) if json.loads(l)['stage'] == 'strength' or json.loads(l).get('label') in ('cocktail 0','cocktail 1','cocktail 2','cocktail 3')]
    file.write_text(''.join(keep))
    about = json.loads((tmp_path/'c'/'experiment.json').read_text())
    del about['chosen']['cocktail']
    (tmp_path/'c'/'experiment.json').write_text(json.dumps(about))
    assert sorted(sets(run()), key=by_number) == first

def test_higher_is_better(tmp_path):
    res = compared(tmp_path/'c', learner=partial(learner, higher=True), metric='r_squared')
    recs = [r for r in res.records if r['stage'] == 'search' and r['args']]
    best = next(r for r in res.test[None] if r['method'] == 'cocktail')
    assert best['args'] == max(recs, key=lambda r: r['error'])['args'] and {'one','two'} <= best['args'].keys()
    assert res.ingredients.adds['one'] > 0 and 'r_squared' in res.advice
    values = sets_table(res.records)['r_squared'].map(float)
    assert values.is_monotonic_decreasing and values.iloc[0] == pytest.approx(max(r['error'] for r in recs), abs=.01)

# What is left out

def test_refused_pairs():
    "Against the library's own refusals"
    def images(seed): return new_learner(seed=seed)
    methods = dict(mixup=MixUp(.4), manifold=ManifoldMixup(), phantom=PhantomEmbedding(), vr=VarianceRegularizer(1.), disturb=DisturbLabel(.1),
                   smooth=LabelSmoothingCrossEntropyFlat(), focal=FocalLossFlat(), fails=Fails())
    got = refused_pairs(Experiment(images, fit, methods))
    assert {*got} == {('mixup','manifold'),('mixup','phantom'),('manifold','phantom'),('phantom','disturb'),('smooth','focal'),('fails',)}
    assert 'mixes the batch too' in got['mixup','manifold'] and '2 loss functions' in got['smooth','focal'] and 'it never works' in got['fails',]

def test_refused_sets_are_not_tried(tmp_path):
    methods = {**GOOD, 'other': Grid(Refuses, by=(.1,1.)), 'fails': Fails()}
    res = compared(tmp_path/'c', methods)
    mine = [{*a} for _,a,_ in sets(res)]
    assert not any('fails' in a or ('other' in a and len(a) > 1) for a in mine) and {'other'} in mine and {'one','two'} in mine
    assert not any(failed(r) for r in res.records if r['stage'] == 'search')
    notes = ' '.join(res.notes)
    assert 'one and other; two and other' in notes and 'fails is left out of the cocktail: ' in notes and 'it never works' in notes
    assert any(failed(r) for r in res.test[None])                                      # as a method alone it is in the comparison, and told

def test_sets_that_fail_in_training(tmp_path):
    "What fails later than in the first batch is told to the search as a failure"
    class Late(Callback):
        def after_fit(self):
            if sum(isinstance(cb, Help) for cb in self.learn.cbs) == 2: raise RuntimeError('too much')
    res = compared(tmp_path/'c', {**GOOD, 'late': Late()}, combine=12)
    bad = [r for r in res.records if r['stage'] == 'search' and failed(r)]
    assert bad and all({*r['args']} == {'one','two','late'} for r in bad)
    assert 'late' not in next(r['args'] for r in res.test[None] if r['method'] == 'cocktail')

def test_all_sets_were_tried(tmp_path):
    "Without strengths there are few sets, and each is tried once"
    res = compared(tmp_path/'c', dict(one=Help(0), two=Help(7)), combine=50)
    assert sorted(map(sorted, (a for _,a,_ in sets(res)))) == [[],['one'],['one','two'],['two']]
    assert {*res.ingredients.index} == {'one','two'}

def test_strengths_of_all_kinds(tmp_path):
    "Whole numbers, words, zeros, and lists of callbacks with strengths of their own"
    class Words(Null):
        def __init__(self, how='a', n=1, to=(0,0)): self.how,self.n,self.to = how,n,to
    methods = dict(words=Grid(Words, how=('a','b'), n=(1,2,8), to=((0,1),(1,0))), zero=Grid(Null, by=(0.,1.)), both=[Grid(Help, 0, by=(.1,10.)), Help(7)])
    res = compared(tmp_path/'c', methods, combine=20)
    args = [a for _,a,_ in sets(res)]
    words = [a['words'] for a in args if 'words' in a]
    assert {w['how'] for w in words} == {'a','b'} and {*map(str, (w['to'] for w in words))} == {'[0, 1]','[1, 0]'}
    assert {type(w['n']) for w in words} == {int} and {w['n'] for w in words} - {1,2,8} and all(1 <= w['n'] <= 8 for w in words)
    assert {a['zero']['by'] for a in args if 'zero' in a} == {0.,1.}
    both = [a['both'] for a in args if 'both' in a]
    assert both and all([*b] == ['Help','Help 2'] and .1 <= b['Help']['by'] <= 10 and b['Help 2'] == {} for b in both)
    assert 'both' in next(r['args'] for r in res.test[None] if r['method'] == 'cocktail')

# Budget

@pytest.mark.parametrize('budget', [100,40])
def test_a_budget_is_kept(tmp_path, budget):
    "In units of runs: the search ends when three fifths are over, and the judgement has the rest, with time for leaving ingredients out"
    with clock_of_runs(): res = compared(tmp_path/'c', combine=True, budget=budget, seeds=2)
    n = lambda *stages: sum(r['stage'] in stages for r in res.records)
    assert n('strength') <= .2*budget and .5*budget < n('strength','search') + 1 <= .6*budget and n('strength','search','test','leave-one-out') <= budget
    assert 'cocktail' in res.tables[None].index and n('leave-one-out')
    assert (n('strength') == 13) == (budget == 100) and any('was dropped after 1 seed' in t for t in res.notes) == (budget == 40)

def test_no_time_to_search(tmp_path):
    res = compared(tmp_path/'c', combine=True, budget=.01, seeds=1)
    assert not sets(res) and any('There is no cocktail' in n for n in res.notes) and not any(r['method'] == 'cocktail' for r in res.test[None])

# Arguments

def test_without_optuna(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'optuna', None)
    raises(['Optuna',"pip install 'latentreg_fastai[cocktail]'"], lambda: compared(tmp_path/'c'), ImportError)
    assert not (tmp_path/'c').exists()

@pytest.mark.parametrize('kwargs,said', [(dict(combine=0), ['combine','0']), (dict(combine='yes'), ['combine',"'yes'"]),
    (dict(methods=dict(cocktail=Null(), one=Help(0))), ["'cocktail'",'something else']), (dict(methods=dict(one=Help(0))), ['two methods or more']),
    (dict(methods=dict(one=Help(0), fails=Fails())), ['two methods or more','it never works'])], ids=['none','a word','its name','one','one that trains'])
def test_bad_arguments(tmp_path, kwargs, said): raises(said, lambda: compared(tmp_path/'c', **kwargs))

def test_the_ingredients_suit_the_task():
    "Each trains; what the task or the network lacks is not among them"
    classes,why = ingredients(new_learner())
    assert {'label smoothing','cw-VR','mixup','dropout','weight decay'} <= classes.keys() == why.keys()
    numbers,_ = ingredients(new_learner(model=nn.Sequential(nn.Flatten(), nn.Linear(64,8), nn.ReLU(), nn.Linear(8,1)), loss_func=MSELossFlat()))
    assert {'VR','weight decay','L1'} <= numbers.keys() and not {'label smoothing','cw-VR','centre loss','phantom','dropout'} & numbers.keys()
    assert not [w for w in refused_pairs(Experiment(lambda s: new_learner(seed=s), fit, classes)) if len(w) == 1]

def test_the_list_of_ingredients_for_a_task(tmp_path):
    res = compare(lambda s: new_learner(seed=s), fit, 'cocktail', seeds=1, out=tmp_path/'c', combine=3)
    assert {'cocktail','label smoothing','mixup'} <= {*res.about['methods']} and len(sets(res)) == 3
    assert not any(failed(r) for r in res.records)
