"Which callbacks help when a pretrained network is fine-tuned on few images?"
# EfficientNet-Lite0 with its ImageNet weights and 1,000 images of CIFAR-10 (JPEG), 100 of each class, enlarged to 96 pixels; every seed
# draws others of the 50,000. The judge is always the same 2,000 of the 10,000 test images, 200 of each class. The course is fastai's
# `fine_tune` at its own rate, with `aug_transforms`, one epoch with the body frozen and four without; it was chosen on other training
# images (27 and 34% of 1,000 wrong with two seeds). Batch normalisation keeps the statistics of the pretraining: with those of the batches a
# head on the frozen body is wrong in 52% of other training images, with the pretraining's in 29% (`nbs/results/pretrained.py`).
# Channels are last in memory for every row alike, which makes a CPU nearly twice as fast (bfloat16 is slower there).
from fastai.vision.all import *
from fastai.callback.channelslast import ChannelsLast
from latentreg_fastai.all import *
from latentreg_fastai.data.groups import class_balanced
from latentreg_fastai.bench import Grid

title = 'EfficientNet-Lite0 fine-tuned on 1,000 images of CIFAR-10 (JPEG)'
seeds = 5

@functools.lru_cache(maxsize=None)
def images(folder):
    "The files of a folder of the data set, and their classes"
    files = get_image_files(untar_data(URLs.CIFAR)/folder).sorted()
    classes = sorted({f.parent.name for f in files})
    return files,tensor([classes.index(f.parent.name) for f in files])

def drawn(folder, n, seed):
    "`n` of these files, as many of each class"
    files,y = images(folder)
    return files[class_balanced(y, n, np.random.default_rng(seed)).tolist()]

def learner(seed):
    train,test = drawn('train', 1000, seed),drawn('test', 2000, 0)
    block = DataBlock((ImageBlock,CategoryBlock), get_items=lambda _: train+test, get_y=parent_label,
                      splitter=IndexSplitter(range(1000, 3000)), item_tfms=Resize(96), batch_tfms=aug_transforms())
    return vision_learner(block.dataloaders('.', bs=16, num_workers=0), efficientnet_lite0, metrics=error_rate)

class NoValidation(Callback):
    "The judge is asked once, after the fit, not in every epoch"
    def before_validate(self): raise CancelValidException

def fit(learn, cbs, scale=1):
    learn.fine_tune(round(4*scale), 2e-3, cbs=[*cbs, PretrainedStatistics(), ChannelsLast(), NoValidation()])

methods = {
    'label smoothing': Grid(LabelSmoothingCrossEntropyFlat, eps=(.05,.15)),
    'MixUp':           Grid(MixUp, alpha=(.2,1.)),
    'ManifoldMixup':   Grid(ManifoldMixup, alpha=(.2,1.)),
    'cw-VR':           Grid(VarianceRegularizer, weight=(.1,1.)),
    'cw-CR':           Grid(CovarianceRegularizer, weight=(.1,1.)),
    'ITRA-c split':    Grid(ITRA, source='split', weight=(.2,.6)),
    'CenterLoss':      Grid(CenterLoss, weight=(.003,.03)),
    'Phantom':         Grid(PhantomEmbedding, alpha=(.5,2.))}

# of images three times as large as those that CIFAR-10-C's levels are for
levels = dict(gaussian_noise=(.15,), shot_noise=(40,), impulse_noise=(.08,), gaussian_blur=(2.,), contrast=(.25,), brightness=(.25,),
              jpeg=(20,), pixelate=(.25,))

def corrupted(learn):
    "Error in % of 500 of the test images under each corruption, and their mean"
    table = robustness(learn, tests='corruption', levels=levels, n=500)
    return {**{r.test: 100*r.error for r in table.itertuples()}, 'mean': 100*mean_corruption_error(table)}

measures = dict(corruptions=corrupted)
