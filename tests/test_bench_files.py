"Comparisons from a Python file and from a folder of images."
import ast, pytest
from common import *
from common_bench import *
from PIL import Image
from latentreg_fastai.bench import Comparison, ImageFolder, Report, experiment_files, read_experiment, report_of

MINE = '''
"My comparison"
from fastai.vision.all import *
from latentreg_fastai.all import *
from latentreg_fastai.bench import Grid
import beside_it
class Mine(LatentCallback):
    def penalty(self, z, *yb): return beside_it.factor*z.square().mean()
class NoValidation(Callback):
    def before_validate(self): raise CancelValidException
class Broken(Callback):
    def before_fit(self): raise ValueError('no good')
@functools.lru_cache(maxsize=None)
def rows(): return torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
def learner(seed):
    x = rows()
    dls = tensor_dls((x[:40], (x[:40,0] > 0).long()), (x[40:], (x[40:,0] > 0).long()), bs=10, device='cpu')
    return Learner(dls, nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), loss_func=CrossEntropyLossFlat(), metrics=accuracy)
def fit(learn, cbs): learn.fit(1, 1e-2, cbs=[*cbs, NoValidation()])
methods = dict(mine=Grid(Mine, weight=(.1,1.)))
seeds = 2
'''

@pytest.fixture
def mine(tmp_path):
    (tmp_path/'beside_it.py').write_text('factor = 2.')
    file = tmp_path/'mine_here.py'
    file.write_text(MINE)
    return file

def test_what_a_file_defines(mine):
    "`from fastai... import *` brings a function `test`, which is no judge; the file's own names count"
    given = read_experiment(mine)
    assert set(given) == {'title','learner','fit','methods','seeds'} and given['title'] == 'mine_here' and given['seeds'] == 2
    mine.write_text(MINE + 'test = lambda learn: learn.dls.valid\ntitle = "A title"\n')
    given = read_experiment(mine)
    assert given['title'] == 'A title' and callable(given['test'])

@pytest.mark.parametrize('text,said', [(MINE.replace('def fit', 'def fitted'), "does not define 'fit'"), (MINE.replace('seeds = 2', 'seeds = two'), 'NameError.*two'),
                                       (MINE.replace('seeds = 2', 'seeds = = 2'), 'SyntaxError')])
def test_a_file_that_cannot_be_used(mine, text, said):
    mine.write_text(text)
    with pytest.raises(ValueError, match=said): read_experiment(mine)

def test_no_such_file():
    with pytest.raises(ValueError, match="no experiment 'nowhere'.*a .py file"): read_experiment('nowhere')
    with pytest.raises(ValueError, match="no experiment 'nowhere.py'"): read_experiment('nowhere.py')

@pytest.mark.parametrize('jobs', [1,2])
def test_the_command_runs_a_file(mine, jobs):
    "A penalty of the file's own, in other processes too, which do not find the file; the same command again trains nothing"
    out = mine.parent/f'out{jobs}'
    p = latentreg('bench', mine, '--out', out, '--jobs', jobs)
    assert p.status == 0 and 'mine_here' in p.out and 'takes no `scale`' in p.out, p.err
    recs = whole_lines(out/'records.jsonl')
    assert len(recs) == 2 + 2*2 and not any(map(failed, recs.values()))
    report = report_of(out)
    assert isinstance(report, Comparison) and list(report.tables[None].index) == ['baseline','mine'] and (out/'report.md').exists()
    again = (out/'records.jsonl').read_text()
    p = latentreg('bench', mine, '--out', out, '--jobs', jobs)
    assert p.status == 0 and (out/'records.jsonl').read_text() == again
    p = latentreg('bench', mine, '--out', out, '--seeds', 3, '--methods', 'mine')
    assert p.status == 0 and len(whole_lines(out/'records.jsonl')) == 2 + 3*2

def test_a_method_that_fails_is_told(mine):
    mine.write_text(MINE.replace('methods = dict(', 'methods = dict(broken=Broken(), '))
    p = latentreg('bench', mine, '--out', mine.parent/'out')
    assert p.status == 1 and 'no good' in p.out and 'broken' in p.out and 'mine' in p.out
    assert latentreg('report', mine.parent/'out').status == 1

@pytest.mark.parametrize('options,said', [(('--smoke',), '--smoke is for suites'), (('--methods','none'), "no method 'none' in it: there are mine"), (('--budget','soon'), "budget.*30min")])
def test_options_that_do_not_fit(mine, options, said):
    p = latentreg('bench', mine, '--out', mine.parent/'out', *options)
    assert p.status == 2 and re.search(said, p.err)

def test_a_budget_is_for_experiments(tmp_path):
    assert '--budget is for experiments' in latentreg('bench', 'digits', '--budget', '5min', '--out', tmp_path).err

def test_those_of_the_package_are_listed():
    p = latentreg('bench', '--list')
    for name,file in experiment_files().items(): assert name in p.out and ast.get_docstring(ast.parse(file.read_text())) in p.out

# A folder of images

def folder(at, split=False):
    rng = np.random.default_rng(0)
    for part in (('train','valid') if split else ('',)):
        for c,base in (('dark',40),('light',200)):
            (at/part/c).mkdir(parents=True)
            for i in range(12): Image.fromarray((base + rng.integers(-30, 30, (16,16,3))).astype('uint8')).save(at/part/c/f'{i}.png')
    return at

@pytest.mark.parametrize('split', [False,True])
def test_a_folder_of_images(tmp_path, split, monkeypatch):
    "Without its weights a network is trained from the start, and that is told; train and valid are taken as they are"
    images,out = folder(tmp_path/'images', split),tmp_path/'out'
    def no_network(*args, **kwargs): raise OSError('no network')
    monkeypatch.setattr('torchvision.models._api.load_state_dict_from_url', no_network)
    with pytest.warns(UserWarning, match='weights of resnet18 cannot be had.*no network'): own = ImageFolder(images, epochs=1, size=32, bs=8)
    learn = own.learner(0)
    assert len(learn.dls.train_ds) == (24 if split else 20) and len(learn.dls.valid_ds) == (24 if split else 4) and learn.dls.vocab == ['dark','light']
    p = latentreg('compare', images, '--epochs', 1, '--size', 32, '--bs', 8, '--seeds', 2, '--methods', 'label smoothing', '--out', out)
    assert p.status == 0 and 'label smoothing' in p.out, p.err
    assert {r['method'] for r in whole_lines(out/'records.jsonl').values()} == {'baseline','label smoothing'}

def test_no_folder_of_images(tmp_path):
    (tmp_path/'empty').mkdir()
    images = folder(tmp_path/'i')
    for args,said in (((tmp_path/'none',), 'there is no folder'), ((tmp_path/'empty',), 'no images in'), ((images,'--arch','resnet19','--bs',8), "no network 'resnet19'"),
                      ((images,'--epochs','0'), '`epochs`'), ((images,'--bs','40'), 'fewer than a batch of 40')):
        p = latentreg('compare', *args, '--out', tmp_path/'o')
        assert p.status == 2 and said in p.err, p.err

def test_a_report_of_either(tmp_path):
    bench.bench(Suite(dict(title='t', version=1, base=dict(data='digits', data_args=dict(n_train=60, n_valid=100), net='mlp', epochs=1), lrs=[.01], seeds=1, rows={}), 's'), tmp_path)
    assert type(report_of(tmp_path)) is Report
