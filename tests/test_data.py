"The loader of tensors, augmentation on the device, and the data sets."
import random
from types import SimpleNamespace
import matplotlib; matplotlib.use('agg')
import numpy as np, pytest, torch
import matplotlib.pyplot as plt
from PIL import Image
from torch import Tensor, nn, tensor
from fastai.data.external import fastai_cfg
from fastai.data.core import TfmdDL
from fastai.interpret import ClassificationInterpretation
from fastai.learner import Learner, load_learner
from fastai.losses import CrossEntropyLossFlat
from fastai.torch_core import TensorCategory, TensorImage, TensorImageBW
from fastai.vision.core import cifar_stats, mnist_stats
from fastai.data.transforms import IntToFloatTensor, Normalize
from latentreg_fastai import data
from latentreg_fastai.data import MirrorFlip, PadCrop, TensorDL, TensorItems, cifar10_dls, digits_dls, mnist_dls, tensor_dls
from latentreg_fastai.models import small_cnn

NAMES = ['cat', 'dog', 'eel', 'fox']

def images(n=20, c=1, h=6, w=6, seed=0, cls=TensorImage):
    "Images of which no two pixels are the same, and labels"
    g = torch.Generator().manual_seed(seed)
    return cls(torch.randperm(n*c*h*w, generator=g).view(n,c,h,w).float()), TensorCategory(torch.arange(n)%4)

def image_dls(n=20, vocab=NAMES, bs=8, **kwargs):
    return tensor_dls(images(n), images(n, seed=1), vocab=vocab, bs=bs, device='cpu', **kwargs)

def equal(a, b): return len(a) == len(b) and all(type(s) is type(t) and torch.equal(s, t) for s,t in zip(a, b))
def batches(dl): return [tuple(b) for b in dl]

def seeded(cls, ds, **kwargs):
    random.seed(3)                       # a loader draws the seed of its generator when it is made
    return cls(ds, num_workers=0, **kwargs)

# TensorDL

@pytest.mark.parametrize('shuffle', [True, False])
@pytest.mark.parametrize('drop_last', [True, False])
@pytest.mark.parametrize('n', [None, 11])
def test_same_batches_as_fastai(shuffle, drop_last, n):
    x,y = images()
    kwargs = dict(bs=6, shuffle=shuffle, drop_last=drop_last, n=n, device=torch.device('cpu'))
    ours,theirs = seeded(TensorDL, (x,y), **kwargs),seeded(TfmdDL, list(zip(x, y)), **kwargs)
    for epoch in range(3):
        a,b = batches(ours),batches(theirs)
        assert len(a) == len(b) == len(ours) and all(map(equal, a, b))

def test_same_one_batch_and_transforms_as_fastai():
    x,y = images(c=3)
    def one_batch(cls, ds):
        tfms = [IntToFloatTensor(), Normalize.from_stats([.1,.2,.3], [.4,.5,.6], cuda=False)]
        return seeded(cls, ds, bs=6, shuffle=True, after_batch=tfms).one_batch()
    a,b = one_batch(TensorDL, (x.byte(),y)),one_batch(TfmdDL, list(zip(x.byte(), y)))
    assert equal(a, b) and a[0].dtype == torch.float32

@pytest.mark.parametrize('bs', [1, 6, 10, 20, 32])
@pytest.mark.parametrize('drop_last', [True, False])
def test_len_and_sizes(bs, drop_last):
    dl = TensorDL(images(), bs=bs, drop_last=drop_last)
    sizes = [len(x) for x,_ in dl]
    assert len(dl) == len(sizes) and sizes == [bs]*(20//bs) + [20%bs]*(not drop_last and 20%bs > 0)

def test_shuffle_is_reproducible_and_sees_every_sample_once():
    a,b = (seeded(TensorDL, images(), bs=6, shuffle=True) for _ in range(2))
    epochs = [batches(a) for _ in range(3)]
    assert all(equal(s, t) for e in epochs for s,t in zip(e, batches(b)))
    pixels = [torch.cat([x[:,0,0,0] for x,_ in e]) for e in epochs]
    assert not torch.equal(pixels[0], pixels[1]) and not torch.equal(pixels[1], pixels[2])
    for p in pixels: assert torch.equal(p.sort()[0], images()[0][:,0,0,0].sort()[0])

def test_inputs_and_targets_stay_together():
    x,y = images()
    for xb,yb in TensorDL((x,y), bs=6, shuffle=True):
        rows = [(x == o).flatten(1).all(1).nonzero().item() for o in xb]
        assert torch.equal(yb, y[rows])

def test_a_loader_leaves_the_global_random_state_alone():
    dl = TensorDL(images(), bs=6, shuffle=True)
    before = random.getstate(),torch.get_rng_state()
    batches(dl)
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])

@pytest.mark.parametrize('bs', [6, 20, 64])
@pytest.mark.parametrize('shuffle', [True, False])
def test_a_batch_does_not_alias_the_data_set(bs, shuffle):
    ds = images()
    for x,y in TensorDL(ds, bs=bs, shuffle=shuffle, device=torch.device('cpu')): x.zero_(); y.fill_(9)
    assert equal(ds, images())

def test_tensors_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match='20, 3'): TensorItems(torch.zeros(20, 2), torch.zeros(3))

# tensor_dls

def test_training_drops_its_last_batch_and_validation_is_whole():
    dls = image_dls(bs=8)
    assert [len(x) for x,_ in dls.train] == [8,8] and [len(x) for x,_ in dls.valid] == [16,4]
    assert torch.equal(torch.cat([x for x,_ in dls.valid]), images(seed=1)[0])
    assert [len(x) for x,_ in image_dls(bs=64).train] == [20]         # one partial batch is better than none

def test_vocab():
    assert image_dls().c == 4 and list(image_dls().vocab) == NAMES
    assert image_dls(vocab=None).c == 4
    x = torch.randn(20, 3)
    assert tensor_dls((x,x), (x,x), device='cpu').c is None           # regression has no classes
    assert tensor_dls((x,x,torch.arange(20)), (x,x,torch.arange(20)), device='cpu').n_inp == 2

# fastai's tools on these loaders

@pytest.fixture(scope='module')
def learn(tmp_path_factory):
    torch.manual_seed(0)
    learn = Learner(digits_dls(n_train=200, n_valid=100, device='cpu'), small_cnn(), loss_func=CrossEntropyLossFlat(),
                    path=tmp_path_factory.mktemp('learner'))
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(4, 1e-2)
    return learn

def same_pixels(a, b): return (a.as_subclass(Tensor).int() - b.as_subclass(Tensor).int()).abs().max() <= 1   # fastai's decode rounds down
def quietly(learn, f):
    with learn.no_bar(), learn.no_logging(): return f()
def predict(learn, item): return quietly(learn, lambda: learn.predict(item))
def get_preds(learn, **kwargs): return quietly(learn, lambda: learn.get_preds(**kwargs))

def test_decode_gives_class_names_and_pixels():
    dl = image_dls().valid
    b = dl.one_batch()
    for (x,name),xb,yb in zip(dl.decode_batch(b, max_n=16), *b):
        assert torch.equal(x, xb) and name == NAMES[yb]

def test_decode_undoes_normalisation():
    dls = digits_dls(device='cpu')
    x,_ = dls.valid.decode(dls.valid.one_batch())
    assert same_pixels(x, dls.valid_ds.tensors[0])

def test_show_batch_titles_are_class_names():
    dls = image_dls()
    _,axes = plt.subplots(1, 6)
    dls.valid.show_batch(ctxs=list(axes), max_n=6)
    assert [ax.get_title() for ax in axes] == [NAMES[y] for y in dls.valid_ds.tensors[1][:6]]
    plt.close('all')

@pytest.mark.parametrize('cls', [TfmdDL, TensorDL])
def test_show_batch_of_one_sample(cls, monkeypatch):
    "fastai's `unique=True` draws indices without end: a loader may take only those it needs"
    def zeros():
        for _ in range(1000): yield 0
        raise RuntimeError('show_batch(unique=True) would never end')
    monkeypatch.setattr('fastai.data.core.Inf', SimpleNamespace(zeros=zeros()))
    x,y = images()
    dl = TensorDL((x,y), bs=6, vocab=NAMES) if cls is TensorDL else TfmdDL(list(zip(x, y)), bs=6, num_workers=0)
    its = dl.show_batch(unique=True, show=False)[-1]
    assert len(its) == 6 and all(torch.equal(o[0], x[0]) for o in its)

def test_show_results(learn):
    quietly(learn, lambda: learn.show_results(max_n=4))
    assert len(plt.gcf().axes) >= 4 and all('\n' in ax.get_title() for ax in plt.gcf().axes[:4])   # target over prediction
    plt.close('all')

def test_predict_one_image(learn):
    preds,targs = get_preds(learn)
    assert (preds.argmax(1) == targs).float().mean() > .5
    for i in (0, 37, 99):
        name,idx,probs = predict(learn, learn.dls.valid_ds[i][0])
        torch.testing.assert_close(probs, preds[i])
        assert idx == preds[i].argmax() and name == learn.dls.vocab[idx]

def test_test_dl(learn):
    dls,n = learn.dls,30
    items = [dls.valid_ds[i] for i in range(n)]
    xb,yb = dls.valid.one_batch()
    plain,labelled = dls.test_dl([x for x,_ in items]),dls.test_dl(items, with_labels=True)
    assert type(plain) is TensorDL and len(plain.dataset) == n
    assert equal(plain.one_batch(), (xb[:n],)) and equal(labelled.one_batch(), (xb[:n],yb[:n]))   # in order, transformed
    want,targs = get_preds(learn)
    torch.testing.assert_close(get_preds(learn, dl=plain)[0], want[:n])
    assert torch.equal(get_preds(learn, dl=labelled)[1], targs[:n])
    assert [name for _,name in labelled.decode_batch((xb,yb), max_n=n)] == [dls.vocab[y] for y in yb[:n]]

def test_interpretation_knows_every_class(learn):
    interp = quietly(learn, lambda: ClassificationInterpretation.from_learner(learn))
    preds,targs = get_preds(learn)
    want = np.zeros((10,10), dtype=int)
    for t,p in zip(targs, preds.argmax(1)): want[t,p] += 1
    assert np.array_equal(quietly(learn, interp.confusion_matrix), want)

def test_new_empty_keeps_the_classes_and_not_the_data(learn):
    empty = learn.dls.new_empty()
    assert len(empty.train_ds) == len(empty.valid_ds) == 0
    assert list(empty.vocab) == list(learn.dls.vocab) and empty.c == 10
    for ds in (empty.train_ds, empty.valid_ds):
        for t in ds.tensors: assert t.untyped_storage().nbytes() == 0     # a view would carry all of the data into every export

def test_export_and_load(learn, tmp_path):
    image,want = learn.dls.valid_ds[5][0],get_preds(learn)[0]
    learn.export(tmp_path/'learner.pkl')
    loaded = load_learner(tmp_path/'learner.pkl')
    assert len(loaded.dls.train_ds) == 0 and len(learn.dls.train_ds) == 200
    (name,idx,probs),(name2,idx2,probs2) = predict(learn, image),predict(loaded, image)
    assert name == name2 and idx == idx2 and torch.equal(probs, probs2)
    dl = loaded.dls.test_dl([x for x,_ in learn.dls.valid_ds])
    assert torch.equal(get_preds(loaded, dl=dl)[0], want)

def test_an_export_does_not_grow_with_the_data(tmp_path):
    def size(n):
        Learner(digits_dls(n, device='cpu'), nn.Linear(1, 1), loss_func=CrossEntropyLossFlat(), path=tmp_path).export('learner.pkl')
        return (tmp_path/'learner.pkl').stat().st_size
    assert abs(size(1300) - size(100)) < 1000

# Augmentation

def reflect(i, size): return -i if i < 0 else 2*(size-1)-i if i >= size else i

def slow_crop(img, pad, top, left, mode):
    "`img`, padded and cropped to its size at (top, left), pixel by pixel"
    c,h,w = img.shape
    out = torch.zeros_like(img)
    for i in range(h):
        for j in range(w):
            r,s = i+top-pad,j+left-pad
            if mode == 'reflect': out[:,i,j] = img[:,reflect(r, h),reflect(s, w)]
            elif 0 <= r < h and 0 <= s < w: out[:,i,j] = img[:,r,s]
    return out

def places(got, img, pad, mode):
    return [(t,l) for t in range(2*pad+1) for l in range(2*pad+1) if torch.equal(got, slow_crop(img, pad, t, l, mode))]

@pytest.mark.parametrize('mode', ['reflect', 'constant'])
@pytest.mark.parametrize('shape', [(1,6,6), (3,5,8)], ids=str)
@pytest.mark.parametrize('cls', [TensorImage, TensorImageBW])
def test_pad_crop_crops_each_image_at_a_place_of_its_own(mode, shape, cls):
    torch.manual_seed(0)
    x,_ = images(40, *shape, cls=cls)
    kept = x.clone()
    out = PadCrop(2, mode=mode)(x, split_idx=0)
    assert type(out) is cls and out.shape == x.shape and torch.equal(x, kept)
    found = [places(o, i, 2, mode) for o,i in zip(out.as_subclass(Tensor), x.as_subclass(Tensor))]
    assert all(len(f) == 1 for f in found)
    tops,lefts = zip(*[f[0] for f in found])
    assert set(tops) == set(lefts) == set(range(5)) and len({f[0] for f in found}) > 12      # 40 draws of 25 places
    assert not torch.equal(PadCrop(2, mode=mode)(x, split_idx=0), out)                       # drawn anew

def test_pad_crop_places_are_uniform():
    torch.manual_seed(0)
    x = TensorImage(torch.arange(9.).view(1,1,3,3).expand(9000,1,3,3))
    centre = PadCrop(1)(x, split_idx=0)[:,0,1,1].long()             # the middle pixel tells the place
    assert (centre.bincount(minlength=9)/9000 - 1/9).abs().max() < .015

@pytest.mark.parametrize('cls', [TensorImage, TensorImageBW])
@pytest.mark.parametrize('p', [0., .3, 1.])
def test_mirror_flip_flips_each_image_or_leaves_it(p, cls):
    torch.manual_seed(0)
    x,_ = images(400, 2, 3, 4, cls=cls)
    kept = x.clone()
    out = MirrorFlip(p)(x, split_idx=0)
    assert type(out) is cls and torch.equal(x, kept)
    flipped = 0
    for o,i in zip(out.tolist(), x.tolist()):
        mirror = [[row[::-1] for row in channel] for channel in i]
        assert o in (i, mirror)
        flipped += o == mirror
    assert abs(flipped/400 - p) < .07

tfms = pytest.mark.parametrize('tfm', [lambda: PadCrop(2), lambda: MirrorFlip(1.)], ids=['PadCrop', 'MirrorFlip'])

@tfms
def test_augmentation_knows_training_from_validation(tfm):
    x,y = images()
    assert not torch.equal(tfm()(x, split_idx=0), x) and torch.equal(tfm()(x, split_idx=1), x)
    assert torch.equal(tfm()((x,y), split_idx=0)[1], y)              # targets are left alone

@tfms
def test_a_loader_augments_in_training_only(tfm):
    dls = image_dls(after_batch=[tfm()])
    dls.train.shuffle = False
    train,valid = dls.train.one_batch()[0],dls.valid.one_batch()[0]
    assert not torch.equal(train, images()[0][:8])
    assert torch.equal(valid, images(seed=1)[0][:16])
    assert torch.equal(dls.test_dl([images()[0][0]]).one_batch()[0][0], images()[0][0])

@tfms
def test_augmentation_in_a_learner(tfm):
    "What the model sees in training and in validation"
    seen = {True: [], False: []}
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(36, 4)
        def forward(self, x):
            seen[self.training].append(x.detach().as_subclass(Tensor))
            return self.lin(x.flatten(1)/720)
    learn = Learner(image_dls(after_batch=[tfm()]), Net(), loss_func=CrossEntropyLossFlat())
    quietly(learn, lambda: learn.fit(1, 1e-3))
    plain = lambda x,all: sum((all == o).flatten(1).all(1).any().item() for o in x)
    assert plain(torch.cat(seen[True]), images()[0].as_subclass(Tensor)) < 8              # of 16: a crop may be the image itself
    assert plain(torch.cat(seen[False]), images(seed=1)[0].as_subclass(Tensor)) == 20

# Data sets

def rows(t): return [o.numpy().tobytes() for o in t.as_subclass(Tensor)]
def train_rows(dls): return rows(dls.train_ds.tensors[0])
def valid_rows(dls): return rows(dls.valid_ds.tensors[0])
def counts(ds): return ds.tensors[-1].bincount().tolist()

def check_subsets(make, n_small, n_large, n_valid, n_classes=10):
    "Balanced; nested for one seed, another for another; training and validation share nothing"
    small,large,other = (make(n_train=n, n_valid=n_valid, seed=s, device='cpu') for n,s in ((n_small,1), (n_large,1), (n_large,2)))
    assert counts(small.train_ds) == [n_small//n_classes]*n_classes and counts(large.train_ds) == [n_large//n_classes]*n_classes
    assert counts(small.valid_ds) == [n_valid//n_classes]*n_classes
    assert set(train_rows(small)) < set(train_rows(large)) and len(set(train_rows(large))) == n_large
    assert valid_rows(small) == valid_rows(large) and set(valid_rows(other)) != set(valid_rows(large))
    assert set(train_rows(other)) != set(train_rows(large))
    for dls in (small, large, other): assert not set(train_rows(dls)) & set(valid_rows(dls))
    assert train_rows(make(n_train=n_small, n_valid=n_valid, seed=1, device='cpu')) == train_rows(small)
    return small

def test_digits_subsets(): check_subsets(digits_dls, 100, 1000, 360)

def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits
    dls = digits_dls(device='cpu')
    assert len(dls.train_ds) == 1437 and counts(dls.valid_ds) == [36]*10
    x,y = load_digits(return_X_y=True)
    known = {tuple(a): b for a,b in zip(x.astype(int).tolist(), y)}                      # no two digits are the same
    both = [(a,b) for ds in (dls.train_ds, dls.valid_ds) for a,b in zip(*ds.tensors)]
    back = [tuple((a.as_subclass(Tensor).flatten().float()*16/255).round().int().tolist()) for a,_ in both]
    assert sorted(back) == sorted(known) and all(known[k] == int(b) for k,(_,b) in zip(back, both))
    assert list(dls.vocab) == [str(i) for i in range(10)]

def check_batches(dls, shape, tol):
    x,y = (torch.cat(t) for t in zip(*dls.train))
    assert x.shape[1:] == shape and x.dtype == torch.float32 and isinstance(x, TensorImage) and type(y) is TensorCategory
    assert x.mean((0,2,3)).abs().max() < tol and (x.std((0,2,3))-1).abs().max() < tol

def test_digits_batches_are_normalised(): check_batches(digits_dls(device='cpu'), (1,8,8), .02)

@pytest.mark.parametrize('kwargs,message', [
    (dict(n_train=15), 'multiple of 10'), (dict(n_valid=15), 'multiple of 10'), (dict(n_train=1800), 'class 0 has 178'),
    (dict(n_valid=1800), 'class 0 has 178'), (dict(n_train=1400), 'n_train=1400 and n_valid=360')])
def test_impossible_sizes(kwargs, message):
    with pytest.raises(ValueError, match=message): digits_dls(device='cpu', **kwargs)

# MNIST and CIFAR-10: the code on folders made here, then the data themselves where they are

CLASSES = ['ant', 'bee', 'cow', 'doe']

MNIST = mnist_dls, ('training','testing'), (28,28), mnist_stats
CIFAR = cifar10_dls, ('train','test'), (32,32,3), cifar_stats

@pytest.fixture(params=[MNIST, CIFAR], ids=['mnist','cifar10'])
def folders(request, tmp_path, monkeypatch):
    "A data set of the real layout: 12 training and 5 test images of each class; `content` tells each image's part and class"
    make,parts,shape,stats = request.param
    rng,content = np.random.default_rng(0),{}
    for part,n in zip(parts, (12, 5)):
        for c in CLASSES:
            (tmp_path/part/c).mkdir(parents=True)
            for i in range(n):
                img = rng.integers(0, 256, shape, dtype=np.uint8)
                Image.fromarray(img).save(tmp_path/part/c/f'{i}.png')
                content[(img[None] if img.ndim == 2 else img.transpose(2,0,1)).tobytes()] = part,c
    monkeypatch.setattr(data, 'untar_data', lambda url: tmp_path)
    data._read_images.cache_clear()
    yield SimpleNamespace(make=make, parts=parts, content=content, stats=stats, size=(1,28,28) if len(shape) == 2 else (3,32,32))
    data._read_images.cache_clear()

def found(ds, folders):
    x,y = ds.tensors
    assert [folders.content[r][1] for r in rows(x)] == [ds.vocab[i] for i in y]           # every label is its folder's
    return {folders.content[r][0] for r in rows(x)}

def test_folders(folders):
    train,test = folders.parts
    dls = folders.make(bs=8, device='cpu')
    assert list(dls.vocab) == CLASSES and counts(dls.train_ds) == [12]*4 and counts(dls.valid_ds) == [5]*4
    assert found(dls.train_ds, folders) == {train} and found(dls.valid_ds, folders) == {test}
    x = torch.cat([b[0] for b in dls.valid])
    mean,std = (tensor(s).view(-1,1,1) for s in folders.stats)
    want = (dls.valid_ds.tensors[0].as_subclass(Tensor).float()/255 - mean)/std
    torch.testing.assert_close(x.as_subclass(Tensor), want)
    assert x.shape == (20,*folders.size)

def test_folders_validation_from_training(folders):
    dls = check_subsets(folders.make, 8, 32, 16, n_classes=4)
    assert found(dls.train_ds, folders) == found(dls.valid_ds, folders) == {folders.parts[0]}
    rest = folders.make(n_valid=16, device='cpu')
    assert counts(rest.train_ds) == [8]*4 and not set(train_rows(rest)) & set(valid_rows(rest))

@pytest.mark.parametrize('kwargs,message', [(dict(n_train=10), 'multiple of 4'), (dict(n_train=52), 'class 0 has 12'),
                                            (dict(n_train=40, n_valid=16), 'n_train=40 and n_valid=16')])
def test_folders_impossible_sizes(folders, kwargs, message):
    with pytest.raises(ValueError, match=message): folders.make(device='cpu', **kwargs)

@pytest.mark.parametrize('folders', [CIFAR], ids=['cifar10'], indirect=True)
@pytest.mark.parametrize('augment', [True, False])
def test_cifar_augments_training_images(augment, folders):
    dls = cifar10_dls(bs=48, augment=augment, device='cpu')
    for dl in dls.loaders:
        dl.shuffle = False
        same = [same_pixels(a, b) for a,b in zip(dl.decode(dl.one_batch())[0], dl.dataset.tensors[0])]
        assert sum(same) <= 5 if augment and dl is dls.train else all(same)   # of 48: of 162 crops and flips one is the image itself

def needs(folder):
    if not (fastai_cfg().path('data')/folder).exists(): pytest.skip(f"{folder} is not in fastai's data folder: untar_data puts it there")

@pytest.fixture(scope='module')
def mnist():
    needs('mnist_png')
    return mnist_dls(n_train=1000, device='cpu')

def test_mnist(mnist):
    assert counts(mnist.train_ds) == [100]*10 and list(mnist.vocab) == [str(i) for i in range(10)]
    assert counts(mnist.valid_ds) == [980,1135,1032,1010,982,892,958,1028,974,1009]
    check_batches(mnist, (1,28,28), .05)
    assert not set(train_rows(mnist)) & set(valid_rows(mnist))

def test_mnist_subset_is_part_of_a_larger_one(mnist):
    larger = mnist_dls(n_train=5000, n_valid=10_000, device='cpu')    # read once: the images are kept
    assert set(train_rows(mnist)) < set(train_rows(larger))
    assert not set(train_rows(larger)) & set(valid_rows(larger)) and counts(larger.valid_ds) == [1000]*10

def test_cifar10():
    needs('cifar10')
    dls = cifar10_dls(n_train=1000, n_valid=1000, device='cpu')       # does not read the test images
    assert counts(dls.train_ds) == counts(dls.valid_ds) == [100]*10
    assert list(dls.vocab) == 'airplane automobile bird cat deer dog frog horse ship truck'.split()
    assert not set(train_rows(dls)) & set(valid_rows(dls))
    check_batches(dls, (3,32,32), .1)
