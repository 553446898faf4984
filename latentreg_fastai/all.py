"What a user's script needs: `from latentreg_fastai.all import *`"
from .layers import get_layer,get_layers
from .signal import latent_layers
# bases for a callback of one's own
from .callback.core import LayerCallback
from .callback.terms import LatentCallback,ClasswiseCallback,WeightedTerm,TermCallback
from .callback.mixing import MixingCallback,LayerMixing
from .callback.rows import MoreRows,LoadedRows,BroughtRows,InnerRows
from .callback.resume import TrainingSaver
from .data.load import TensorItems,TensorDL,tensor_dls,labels_of,sampled_dl,no_augment
from .data.groups import GroupDL,MicroClusterDL,PairedDL,semisup_dls
# the methods
from .callback.mixup import ManifoldMixup
from .callback.moments import VarianceRegularizer,CovarianceRegularizer,ActivationL1
from .callback.phantom import PhantomEmbedding
from .callback.itra import ITRA
from .callback.baselines import CenterLoss,DisturbLabel,WeightL1
from .callback.settings import WeightDecay,DropoutRate
from .callback.varmixup import VarMixup
from .callback.semisup import SemiSupervisedMixup
from .callback.gan import GANMixup
from .callback.monitor import LatentMonitor,pair_distance
from .vae import MMDVAE,vae_loss,fit_vae
from .pretrained import PretrainedStatistics,efficientnet_lite0
# measuring and showing
from .viz import use_style,in_style,colors_for,axes_for,plot_points,plot_class_histograms,plot_lines,plot_bins,plot_surface
from .metrics import *
from .robustness import PixelSpace,fgsm,pgd,deformations,corruptions
from .robustness import robustness,robustness_tests,robustness_summary,mean_corruption_error,plot_robustness
from .strength import *
from .interpret import LatentInterpretation,LatentComparison
# what the comments beside signatures say, in `help()` too
from fastai.learner import Learner as _Learner, Recorder as _Recorder
from .help import document as _document
_document(_Learner, _Recorder)
