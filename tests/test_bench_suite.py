"What a suite's file may say and asks for; every suite of the package for a few steps."
import pytest
import yaml
from common import *

from common_bench import *

def small(**kwargs): return {'title': 'small', 'version': 1, 'base': dict(data='mnist', data_args=dict(n_train=1000), net='mlp', epochs=1), 'lrs': [5e-3], 'rows': {}, **kwargs}

def test_fixed_rows_of_a_suite():
    s = Suite(small(rows={'Phantom k=3': dict(of='Phantom', args=dict(k=3))}, seeds=2))
    lrs = s.choose_lrs([])
    assert s.lr_runs() == s.strength_runs(lrs) == [] and lrs == {None: 5e-3}
    runs = s.test_runs(lrs, {})
    assert [(r['seed'],r.get('label', r['method']),r['args']) for r in runs] == [(i,*row) for i in (0,1) for row in (('baseline',{}),('Phantom k=3',dict(k=3)))]
    assert all('n_valid' not in r['data_args'] for r in runs)

def test_a_suite_chooses_on_the_validation_split(monkeypatch, tmp_path):
    "The best on validation is taken, whatever the test set says; the stages share no seed and no data"
    s = Suite(small(lrs=[1e-3,1e-2], rows={'VR': dict(grid=dict(weight=[.1,1.]))}, tune=dict(n_valid=500, seeds=[100,101]), seeds=3))
    asked = []
    def fake(runs, *args, **kwargs):
        asked.extend(runs)
        good = lambda r: (r['lr'] == 1e-2) + (r['args'].get('weight') == .1)
        return [{**r, 'error': 10.-good(r) if r['stage'] != 'test' else good(r), 'nll': 1.} for r in runs]
    monkeypatch.setattr(suite_module, 'run_all', fake)
    s.bench(tmp_path/'nothing.jsonl')
    test = [r for r in asked if r['stage'] == 'test']
    assert {r['lr'] for r in test} == {1e-2} and {r['args'].get('weight') for r in test} == {None,.1}
    assert all('n_valid' in r['data_args'] for r in asked if r not in test) and not any('n_valid' in r['data_args'] for r in test)
    assert {r['seed'] for r in test} == {0,1,2} and {r['seed'] for r in asked if r not in test} == {100,101}

@pytest.mark.parametrize('base,match', [(dict(task='regression'), ["unknown task 'regression'",'reconstruction']), (dict(labeled=0), ['`labeled`','0']), (dict(labeled='x'), ["'x'"]), (dict(vae=3), ['`vae`','3'])])
def test_suites_of_other_tasks_are_checked(base, match):
    raises(['suite s', *match], lambda: Suite(dict(title='', version=1, base=dict(data='digits', net='small_cnn', epochs=1, **base), lrs=[.01], rows={}), 's'))

# What is wrong in a suite

WRONG = {'key of the suite':    (dict(row={}), ["'row'",'rows']),
         'key of base':         (dict(base={**BASE, 'epoch': 1}), ["'epoch'",'epochs']),
         'key of tune':         (dict(tune=dict(n_vald=1)), ["'n_vald'",'n_valid']),
         'key of a row':        (dict(rows={'VR': dict(arg={})}), ["'arg'",'args']),
         'key of a run':        (dict(rows={'VR': dict(run=dict(epoch=1))}), ["'epoch'",'epochs']),
         'key of a condition':  (dict(conditions={'a': dict(seed=1)}), ["'seed'",'seeds']),
         'data':                (dict(base={**BASE, 'data': 'digit'}), ["'digit'",'digits','cifar10']),
         'net':                 (dict(base={**BASE, 'net': 'resnet19'}), ["'resnet19'",'resnet20']),
         'opt':                 (dict(base={**BASE, 'opt': 'adamw'}), ["'adamw'",'adam','sgd']),
         'net of a condition':  (dict(conditions={'a': dict(base=dict(net='resnet19'))}), ["'resnet19'",'resnet20']),
         'method':              (dict(rows={'VRR': {}}), ["'VRR'",'cw-VR','ManifoldMixup']),
         'method of a label':   (dict(rows={'mine': dict(of='VRR')}), ["'VRR'","'mine'",'cw-VR']),
         'no base':             (dict(base={}), ["'data' is missing"]),
         'seeds':               (dict(seeds=101, tune=dict(n_valid=100)), ['seeds','tune']),
         'seeds, listed':       (dict(seeds=[3,4], tune=dict(n_valid=100, seeds=[4])), ['seeds','tune']),
         'grid, no n_valid':    (dict(rows={'VR': dict(grid=dict(weight=[1,2]))}), ['tune','n_valid']),
         'lrs, no n_valid':     (dict(lrs=[.1,.2]), ['tune','n_valid']),
         'grid of two':         (dict(rows={'ITRA': dict(grid=dict(weight=[1], warmup=[0]))}, tune=dict(n_valid=100)), ["'ITRA'",'more than one']),
         'a row that is empty': (dict(rows={'VR': None}), ['mapping','None']),
         # what YAML makes of a small slip
         'opt of a row':        (dict(rows={'VR': dict(run=dict(opt='adamw'))}), ["'adamw'",'sgd']),
         'net of a row':        (dict(rows={'VR': dict(run=dict(net='resnet19'))}), ["'resnet19'",'resnet20']),
         'fit':                 (dict(base={**BASE, 'fit': 'onecycle'}), ["'onecycle'",'one_cycle','flat','drops']),
         'measures':            (dict(base={**BASE, 'measures': ['robust']}), ["'robust'",'robustness']),
         'epochs as text':      (dict(base={**BASE, 'epochs': '3'}), ['epochs',"'3'"]),
         'drops without':       (dict(base={**BASE, 'fit': 'drops'}), ['drops','shares']),
         'cost as text':        (dict(rows={'ITRA': dict(cost='2')}), ['cost',"'ITRA'"]),
         'grid is a list':      (dict(rows={'VR': dict(grid=[1])}), ['grid',"'VR'"]),
         'data_args, a list':   (dict(base={**BASE, 'data_args': [100]}), ['data_args']),
         'precision':           (dict(base={**BASE, 'precision': 'fp8'}), ["'fp8'",'bf16']),
         'lrs as text':         (dict(lrs=['1e-3']), ["'1e-3'"]),
         'lrs is a number':     (dict(lrs=.01), ['lrs']),
         'no lrs':              (dict(lrs=[]), ['lrs']),
         'rows are empty':      (dict(rows=None), ['rows']),
         'rows are a list':     (dict(rows=['VR']), ['rows']),
         'conditions, a list':  (dict(conditions=['a']), ['conditions']),
         'grid of a number':    (dict(rows={'VR': dict(grid=dict(weight=1))}, tune=dict(n_valid=100)), ['grid',"'VR'"]),
         'measures, a name':    (dict(base={**BASE, 'measures': 'corruptions'}), ['measures',"['corruptions']"]),
         'a record has it':     (dict(base={**BASE, 'measures': ['error']}), ["'error'"]),
         'no drops':            (dict(base={**BASE, 'drops': [.5]}), ['drops','fit: drops']),
         'drops left':          (dict(base={**BASE, 'fit': 'drops', 'drops': [.5]}, rows={'VR': dict(run=dict(fit='flat'))}), ["'VR'",'drops',"'flat'"]),
         'drop':                (dict(base={**BASE, 'drop': 7}), ['drop','share']),
         'drop of a row':       (dict(rows={'VR': dict(run=dict(drop=7))}), ["'VR'",'drop','share']),
         'wd as text':          (dict(base={**BASE, 'wd': '1e-3'}), ['wd',"'1e-3'"]),
         'last':                (dict(base={**BASE, 'last': 0}), ['last','above 0']),
         'points':              (dict(conditions={'a': dict(base=dict(points=0))}), ['points','above 0']),
         'channels_last':       (dict(base={**BASE, 'channels_last': 'no'}), ['channels_last',"'no'"]),
         'no net':              (dict(base={**BASE, 'net': None}), ['net','None']),
         'args of a date':      (dict(rows={'VR': dict(args=dict(a=pd.Timestamp(0)))}), ["'VR'",'args','Timestamp']),
         'a rate below 0':      (dict(lrs=[-.1]), ['lrs','-0.1']),
         'seeds that are none': (dict(seeds=[.5]), ['seeds','0.5']),
         'seed below 0':        (dict(tune=dict(n_valid=100, seeds=[-1])), ['seeds','-1']),
         'version as text':     (dict(version='one'), ['version',"'one'"]),
         'title of a list':     (dict(title=['Tiny']), ['`title`',"['Tiny']",'quotes']),
         'no title':            (dict(title=None), ['`title`','None']),
         'about, a list':       (dict(about=['one','two']), ['`about`',"['one', 'two']",'about: >']),
         'about, a mapping':    (dict(about={'see': 'there'}), ['`about`',"'see'"]),
         'title true':          (dict(title=True), ['`title`','True']),
         'paper, a mapping':    (dict(paper={'source': 'a'}), ['`paper`','list']),
         'paper of text':       (dict(paper=['a']), ['paper',"'a'"]),
         'paper lacks':         (dict(paper=[dict(source='a', measure='nll')]), ["'values'"]),
         'paper, unknown':      (dict(paper=[dict(source='a', measure='nll', values={}, table=3)]), ["'table'"]),
         'measure of a paper':  (dict(paper=[dict(source='a', measure='acc', values={})]), ['measure',"'acc'",'accuracy']),
         'values of a paper':   (dict(paper=[dict(source='a', measure='nll', values=[1])]), ['values','[1]']),
         'rows of a paper':     (dict(paper=[dict(source='a', measure='nll', values=dict(all=[1]))]), ["'all'",'[1]']),
         'figure of a paper':   (dict(paper=[dict(source='a', measure='nll', values=dict(all=dict(baseline=1.)))]), ['1.0','[92.1, 0.3]']),
         'figure, text':        (dict(paper=[dict(source='a', measure='nll', values=dict(all=dict(baseline=['92 %'])))]), ["'92 %'"]),
         'tune seed, a number': (dict(tune=dict(n_valid=100, seeds=100)), ['seeds','tune'])}

@pytest.mark.parametrize('changes,said', WRONG.values(), ids=WRONG)
def test_a_wrong_suite(changes, said):
    "The error names what is wrong and, where there is a choice, what there is"
    with pytest.raises(ValueError) as e: Suite(spec(**changes), 'mine')
    assert all(s in str(e.value) for s in ('mine', *said)), e.value

def test_drops_of_a_row_and_of_a_condition():
    "They go with the `fit` of what the row or condition inherits, and a null takes them away"
    drops = {**BASE, 'fit': 'drops', 'drops': [.5]}
    suite = Suite(spec(base=drops, rows={'VR': dict(run=dict(drops=[.25])), 'CR': dict(run=dict(fit='flat', drops=None))}, conditions=dict(a={}, b=dict(base=dict(fit=None, drops=None), rows={'VR': dict(run=dict(fit='drops', drops=[.75]))}))))
    runs = [r.check() for r in suite.test_runs(dict(a=.1, b=.1), {}) if r.seed == 0]
    assert [(r.condition,r.row,r.fit,r.drops) for r in runs] == [('a','baseline','drops',[.5]),('a','VR','drops',[.25]),('a','CR','flat',None),('b','baseline',None,None),('b','VR','drops',[.75])]

def test_a_suite_without_conditions_says_so():
    with pytest.raises(ValueError, match="suite digits: it has no conditions.*'foo'"): Suite.load('digits').only(conditions=['foo'])

@pytest.mark.parametrize('k', ['title','version','base','lrs','rows'])
def test_what_a_suite_needs(k):
    with pytest.raises(ValueError, match=f"'{k}' is missing"): Suite({n: v for n,v in spec().items() if n != k})

def test_more_seeds_than_are_free():
    "`--seeds` may not reach the seeds that the choices were made with"
    suite = Suite(spec(tune=dict(n_valid=100, seeds=[100])))
    with pytest.raises(ValueError, match='seeds'): suite.only(seeds=101)

# What a suite asks for

def rows_at(suite, cond=None): return suite.conditions[cond]['rows']

def test_a_row_that_costs_more():
    "A baseline with as many more epochs stands beside it, once for each factor, and goes and comes with its row"
    suite = Suite(spec(base={**BASE, 'epochs': 10}, rows={'VR': {}, 'Phantom': dict(cost=2), 'ITRA': dict(cost=2), 'ITRA-c': dict(cost=1.5)}))
    assert list(rows_at(suite)) == ['baseline','VR','Phantom','ITRA','ITRA-c','baseline ×1.5','baseline ×2']
    runs = {r.get('label', r['method']): r for r in suite.test_runs({None: .01}, {})}
    assert {k: r['epochs'] for k,r in runs.items()} == {'baseline': 10, 'VR': 10, 'Phantom': 10, 'ITRA': 10, 'ITRA-c': 10, 'baseline ×2': 20, 'baseline ×1.5': 15}
    assert all(runs[f'baseline ×{n}']['method'] == 'baseline' and runs[f'baseline ×{n}']['args'] == {} for n in ('2','1.5'))
    assert list(rows_at(suite.only(['VR']))) == ['baseline','VR'] and list(rows_at(suite.only(['ITRA']))) == ['baseline','ITRA','baseline ×2']
    assert list(rows_at(suite)) == ['baseline','VR','Phantom','ITRA','ITRA-c','baseline ×1.5','baseline ×2']   # `only` gives another suite

def test_what_is_tried():
    "Every rate and strength with every seed of `tune`, on held-out images; the strengths at the chosen rate, beside the row's own arguments"
    suite = Suite(spec(lrs=[.1,.2], tune=dict(n_valid=50, seeds=[100,101]), rows={'VR': dict(args=dict(layer='2'), grid=dict(weight=[1.,2.,3.])), 'CR': {}}))
    rates,strengths = suite.lr_runs(),suite.strength_runs({None: .2})
    assert [(r['lr'],r['seed'],r['method']) for r in rates] == [(l,s,'baseline') for l in (.1,.2) for s in (100,101)]
    assert [(r['args'],r['seed'],r['method'],r['lr']) for r in strengths] == [(dict(layer='2', weight=w),s,'VR',.2) for w in (1.,2.,3.) for s in (100,101)]
    assert {r['data_args']['n_valid'] for r in rates + strengths} == {50} and {r['data_args']['n_valid'] for r in suite.test_runs({None: .2}, {})} == {100}
    assert Suite(spec(tune=dict(n_valid=50))).lr_runs() == []   # with a single rate nothing is tried

def _rec(error, nll=1., **kwargs): return {**RUN, 'error': error, 'nll': nll, **kwargs}

def test_what_is_chosen():
    "The lowest mean error over seeds, then the lowest NLL, without the runs that failed, in each condition by itself"
    suite = Suite(spec(lrs=[.1,.2,.3], tune=dict(n_valid=50, seeds=[100,101]), conditions=dict(a={}, b={})))
    recs = [_rec(e, n, condition=c, lr=l) for c,l,e,n in [('a',.1,10.,1.),('a',.1,20.,1.),('a',.2,15.,.5),('a',.2,15.,.5),('a',.3,1.,9.),('a',.3,40.,9.),('b',.1,5.,1.),('b',.2,6.,.5)]]
    recs.append({**RUN, 'condition': 'b', 'lr': .3, 'failed': 'ValueError'})
    assert suite.choose_lrs(recs) == dict(a=.2, b=.1)
    alone = Suite(spec(lrs=[.1,.2], tune=dict(n_valid=50)))
    assert alone.choose_lrs([_rec(2., lr=.1), _rec(1., lr=.2)]) == {None: .2} and alone.choose_lrs([]) == {None: .1}

def test_a_whole_number_stays_one():
    "As the number of images of a cluster, which is no float"
    suite = Suite(spec(tune=dict(n_valid=50), rows={'Phantom': dict(grid=dict(k=[2,3]))}))
    (chosen,) = suite.choose_strengths([_rec(e, method='Phantom', args=dict(k=k)) for k,e in ((2,9.),(3,8.))]).values()
    assert chosen == dict(k=3) and isinstance(chosen['k'], int)

def test_some_of_a_suite():
    suite = Suite(spec(rows={'VR': {}, 'CR': {}}, conditions=dict(a={}, b=dict(rows={'ITRA': {}}))))
    some = suite.only(['CR'], 1, ['a'])
    assert list(some.conditions) == ['a'] and list(rows_at(some, 'a')) == ['baseline','CR'] and [r['seed'] for r in some.test_runs({'a': .1}, {})] == [0,0]
    assert list(rows_at(suite.only(['ITRA']), 'b')) == ['baseline','ITRA'] and list(rows_at(suite.only(['ITRA']), 'a')) == ['baseline']   # a row of one condition
    assert suite.only().test_runs(dict(a=.1, b=.1), {}) == suite.test_runs(dict(a=.1, b=.1), {}) and [len(rows_at(suite, c)) for c in 'ab'] == [3,2]

def test_a_condition_that_is_a_number():
    "YAML reads `100:` as one, the command gives text"
    suite = Suite(spec(conditions={100: {}, 200: {}}))
    some = suite.only(conditions=['100'])
    assert list(map(str, some.conditions)) == ['100']

def test_a_condition_changes_some_settings():
    "Mappings are merged, rows and lists replaced, and a null takes something away; the other conditions do not notice"
    own = dict(base=dict(data_args=dict(n_train=None, bs=32), opt='sgd'), rows={'ITRA': dict(grid=dict(weight=[1.]))}, lrs=[.5], tune=dict(n_valid=70), seeds=[7,8])
    suite = Suite(spec(tune=dict(n_valid=50, seeds=[100]), conditions=dict(a={}, b=own, c=None)))
    a,b,c = (suite.conditions[k] for k in 'abc')
    assert b['base'] == {**BASE, 'data_args': dict(n_train=None, n_valid=100, bs=32), 'net_args': {}, 'opt': 'sgd'}
    assert (list(b['rows']),b['lrs'],b['tune'],b['seeds']) == (['baseline','ITRA'],[.5],dict(n_valid=70, seeds=[100]),[7,8])
    assert a == c and a['base'] == {**BASE, 'net_args': {}} and (list(a['rows']),a['lrs'],a['tune'],a['seeds']) == (['baseline','cw-VR'],[.01],dict(n_valid=50, seeds=[100]),[0,1])
    assert {r['condition'] for r in suite.test_runs(suite.choose_lrs([]), {})} == {'a','b','c'} and {r['lr'] for r in suite.test_runs(suite.choose_lrs([]), {}) if r['condition'] == 'b'} == {.5}

def test_a_row_changes_the_run():
    "`run` in a row, for that row alone"
    suite = Suite(spec(rows={'slow': dict(of='VR', run=dict(epochs=3, data_args=dict(bs=10)))}))
    base,slow = suite.test_runs({None: .1}, {})[:2]
    assert (base['epochs'],base['data_args']) == (1,BASE['data_args']) and (slow['epochs'],slow['data_args'],slow['label'],slow['method']) == (3,{**BASE['data_args'], 'bs': 10},'slow','VR')

def test_a_suite_of_ones_own_is_a_file(tmp_path, monkeypatch):
    "Named by its stem; one that is called like a suite of the package is told apart by its path"
    monkeypatch.chdir(tmp_path)
    file = suite_file(tmp_path)
    assert Suite.load(str(file)).name == 'mine' == Suite.load('mine.yaml').name and Suite.load(file).title == 'Tiny'
    file.rename('digits.yaml')
    assert Suite.load('digits.yaml').title == 'Tiny' and Suite.load('digits').title != 'Tiny'

# The suites of the package

def test_every_run_of_the_package_is_checked():
    for s in SUITES.values():
        lrs = s.choose_lrs([])
        for r in s.lr_runs() + s.strength_runs(lrs) + s.test_runs(lrs, {}): assert r.check() is r

def test_demo_has_everything_that_fits():
    c = Suite.load('digits').conditions[None]
    assert {r['of'] for r in c['rows'].values()} == {n for n,m in methods.items() if m.listed and m.plain and not m.of_fastai} and c['seeds'] == [0,1,2]

SHAPES = dict(mnist=(1,28,10), fashionmnist=(1,28,10), kmnist=(1,28,10), cifar10=(3,32,10), cifar100=(3,32,100), svhn=(3,32,10), stl10=(3,96,10), imagenet=(3,224,1000))
SUITES = {n: Suite.load(n) for n in suite_files()}
CONDITIONS = [(n,c) for n,s in SUITES.items() for c in s.conditions]

def stand_in(name):
    channels,size,classes = SHAPES[name]
    def dls(n_train=None, n_valid=None, seed=0, bs=64, **kwargs):
        y = torch.arange(40) % classes
        return tensor_dls((torch.rand(40, channels, size, size), y), (torch.rand(40, channels, size, size), y), vocab=list(range(classes)), bs=bs)
    return dls

FIRST = {(n,next(iter(s.conditions))) for n,s in SUITES.items()}
@pytest.mark.grid('name,condition', CONDITIONS, every=8, always=lambda c: c in FIRST or not SUITES[c[0]].conditions[c[1]]['gpu'], ids=plain)   # of what is for a GPU a slice
def test_a_few_steps(name, condition, monkeypatch, tmp_path):
    "All rows of a suite's first condition, in the others the baseline, the last row and one that costs more"
    for d in SHAPES: monkeypatch.setitem(datasets, d, stand_in(d))
    suite = SUITES[name]
    rows = list(suite.conditions[condition]['rows'])
    if condition != next(iter(suite.conditions)): rows = [*[r for r in rows if 'cost' in suite.conditions[condition]['rows'][r]][:1], [r for r in rows if not r.startswith('baseline')][-1]]
    smoke = suite.only(rows, conditions=[condition]).smoke()
    recs = smoke.bench(tmp_path/'records.jsonl')
    bad = [r for r in recs if failed(r)]
    assert not bad, bad[0].get('traceback')
    assert {r.get('label', r['method']) for r in recs} >= {'baseline',*(r for r in rows if not r.startswith('baseline ×'))} and all(0 <= r['error'] <= (math.inf if 'figure' in r else 100) and math.isfinite(r['step_ms']) for r in recs)

PAPERS = [n for n,s in SUITES.items() if s.paper]
@pytest.mark.parametrize('name', PAPERS)
def test_papers_figures_have_rows(name):
    "Every figure of a paper belongs to a condition and stands beside rows there; an accuracy lies between 0 and 100"
    suite = SUITES[name]
    for p in suite.paper:
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

@pytest.mark.parametrize('changes', [dict(title='US$ and A$'), dict(title='$x_$'), dict(title=2024), dict(title='two\nlines'), dict(about='of $x_$'), dict(about=None), dict(about=3), dict(title='')], ids=plain)
def test_texts_of_any_kind(changes):
    s = Suite(spec(**changes), 'mine')
    assert all(isinstance(t, str) and '\n' not in t for t in (s.title,s.about))
    for k,v in changes.items(): assert getattr(s, k) == ('' if v is None else ' '.join(str(v).split()))

def test_texts_of_an_old_suite_are_no_error_in_a_report():
    s = Suite(spec(title=None, about=['one','two $x_$']), 'mine', names=False)
    assert s.title == 'None' and s.about == 'one two $x_$'

def test_rows_that_are_named_by_numbers():
    s = Suite(spec(rows={1: dict(of='VR'), 2.5: dict(of='cw-VR')}), 'mine')
    assert list(s.conditions[None]['rows']) == ['baseline','1','2.5'] and [r.label for r in s.test_runs({None: .1}, {})][:3] == [None,'1','2.5']
