"""The public names, `name as name` from the module that defines them; `energyflow/__init__.py` loads them lazily."""

from . import (
    chains as chains,
    couplings as couplings,
    diagnostics as diagnostics,
    energies as energies,
    energy as energy,
    evaluation as evaluation,
    kernels as kernels,
    logz as logz,
    negatives as negatives,
    objectives as objectives,
    plots as plots,
    runs as runs,
    stats as stats,
    types as types,
)
from .adaptation import (
    chees as chees,
    meads as meads,
    tune_mclmc as tune_mclmc,
    window_adaptation as window_adaptation,
)
from .bridge import as_distribution as as_distribution, from_numpyro as from_numpyro
from .chains import (
    Trace as Trace,
    advance as advance,
    advance_chains as advance_chains,
    sample as sample,
    sample_chains as sample_chains,
)
from .checkpoint import load as load, save as save
from .descent import descend as descend
from .diagnostics import (
    asymmetry as asymmetry,
    by_chain as by_chain,
    check as check,
    gap_report as gap_report,
    long_run as long_run,
    probe_modes as probe_modes,
    summary as summary,
    superchain_starts as superchain_starts,
    to_arviz as to_arviz,
)
from .diffusion import (
    Diffusion as Diffusion,
    cumulative_diffusion as cumulative_diffusion,
    linear_diffusion as linear_diffusion,
    log_snr_diffusion as log_snr_diffusion,
)
from .energies.bases import (
    bernoulli_base as bernoulli_base,
    categorical_base as categorical_base,
    uniform_spins as uniform_spins,
)
from .energies.classifiers import (
    class_logits as class_logits,
    classifier_energy as classifier_energy,
)
from .energies.discrete import rbm as rbm, rbm_marginal as rbm_marginal
from .energies.fields import (
    dot_energy as dot_energy,
    field as field,
    line_energy as line_energy,
    mlp_field as mlp_field,
    mlp_velocity as mlp_velocity,
    norm_energy as norm_energy,
    residual_mlp_field as residual_mlp_field,
    sum_landscapes as sum_landscapes,
)
from .energies.fitted import drawn_noise as drawn_noise, gaussian_base as gaussian_base, mixture_base as mixture_base
from .energies.flows import flow as flow
from .energies.lattices import ising as ising
from .energies.levels import (
    level_mlp as level_mlp,
    level_mlp_field as level_mlp_field,
)
from .energies.modules import from_apply as from_apply, from_nnx as from_nnx, to_nnx as to_nnx
from .energies.multiscale import (
    multiscale as multiscale,
    multiscale_cnn as multiscale_cnn,
)
from .energies.nets import (
    cnn as cnn,
    mlp as mlp,
    residual_cnn as residual_cnn,
)
from .energies.noisy import noise_conditional_mlp as noise_conditional_mlp
from .energies.transforms import bounded as bounded, transformed as transformed
from .energy import (
    Frozen as Frozen,
    condition as condition,
    frozen as frozen,
    kind as kind,
    landscape as landscape,
    logdensity as logdensity,
    normalised as normalised,
    normalised_levels as normalised_levels,
    sum_energies as sum_energies,
    temperature as temperature,
    tempered as tempered,
    tilt as tilt,
    with_noise as with_noise,
)
from .evaluation import (
    energy_score as energy_score,
    likelihood_ratio as likelihood_ratio,
    ood_report as ood_report,
    pgd as pgd,
)
from .evidence import compare as compare, log_z as log_z
from .health import (
    Alarm as Alarm,
    Event as Event,
    guard as guard,
    slowable as slowable,
    watch as watch,
)
from .joint_levels import (
    free_log_z as free_log_z,
    joint_chain as joint_chain,
)
from .kernels import (
    adjusted_mclmc as adjusted_mclmc,
    barker as barker,
    block_gibbs as block_gibbs,
    dmala as dmala,
    dula as dula,
    dynamic_hmc as dynamic_hmc,
    elliptical_slice as elliptical_slice,
    geometric_ladder as geometric_ladder,
    ghmc as ghmc,
    gibbs as gibbs,
    gibbs_with_gradients as gibbs_with_gradients,
    hmc as hmc,
    langevin as langevin,
    mala as mala,
    mclmc as mclmc,
    nuts as nuts,
    parallel_tempering as parallel_tempering,
    ramped_langevin as ramped_langevin,
    rmh as rmh,
    sgld as sgld,
    slice_sampling as slice_sampling,
    temperature_ramp as temperature_ramp,
    tune_ladder as tune_ladder,
    ula as ula,
)
from .logz import (
    LogZ as LogZ,
    ais as ais,
    bits_per_dimension as bits_per_dimension,
    bracket as bracket,
    log_likelihood as log_likelihood,
    log_z_enumeration as log_z_enumeration,
    log_z_quadrature as log_z_quadrature,
    raise_log_likelihood as raise_log_likelihood,
    reverse_ais as reverse_ais,
    smc as smc,
)
from .negatives import (
    cd as cd,
    from_base as from_base,
    from_data as from_data,
    from_either as from_either,
    from_normal as from_normal,
    from_sampler as from_sampler,
    from_source as from_source,
    from_uniform as from_uniform,
    pcd as pcd,
    replay as replay,
    short_run as short_run,
)
from .noise_levels import annealed_langevin as annealed_langevin
from .objectives import (
    conditional_nce as conditional_nce,
    contrastive as contrastive,
    denoising_score_matching as denoising_score_matching,
    diffusion_assisted as diffusion_assisted,
    diffusion_contrastive as diffusion_contrastive,
    dual_score_matching as dual_score_matching,
    energy_matching as energy_matching,
    equilibrium_matching as equilibrium_matching,
    finite_difference_score_matching as finite_difference_score_matching,
    flow_contrastive as flow_contrastive,
    from_class_gaussians as from_class_gaussians,
    improved_contrastive as improved_contrastive,
    in_turn as in_turn,
    joint as joint,
    maximum_likelihood as maximum_likelihood,
    mean_flow as mean_flow,
    nce as nce,
    nearest_neighbour_entropy as nearest_neighbour_entropy,
    noise_level_classification as noise_level_classification,
    normalise_at as normalise_at,
    one_step as one_step,
    published_recovery as published_recovery,
    ranking_nce as ranking_nce,
    recovery_likelihood as recovery_likelihood,
    reverse_kl as reverse_kl,
    score_matching as score_matching,
    sharpness_aware as sharpness_aware,
    sliced_score_matching as sliced_score_matching,
    stateless as stateless,
    transport_matching as transport_matching,
)
from .recovery import (
    recovery_sample as recovery_sample,
    with_initialiser as with_initialiser,
)
from .runs import load_run as load_run
from .sampling import run as run
from .stepsize import by_acceptance as by_acceptance, by_jump as by_jump
from .training import (
    TrainState as TrainState,
    guarded as guarded,
    init as init,
    make_step as make_step,
    remarks as remarks,
    train as train,
)
from .transport import transport_langevin as transport_langevin, transport_run as transport_run
from .tuning import tune as tune
from .unbiased import unbiased_gradient as unbiased_gradient
from .walkers import jarzynski as jarzynski, live_log_z as live_log_z
from .warmup import warm_up as warm_up

__version__: str
