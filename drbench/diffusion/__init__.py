"""What the diffusion-based defenses share: one denoiser contract, and everything that speaks it.

denoiser     the contract `denoise(z_net, sigma_net, labels=None) -> x0_net`, documented once
schedules    discrete variance-preserving schedules, noise level <-> timestep, the Karras grid
precond      a raw network wrapped into the contract: EDM, and discrete VP (epsilon prediction)
networks     the raw networks
samplers     one-shot, Heun PF-ODE, DDIM / ancestral, reverse SDE: functions over the contract
vp_sde       the variance-preserving SDE of DiffPure, forwards and backwards
stepwise     exact gradients through many steps in the memory of one
consistency  consistency functions: one call from any noise level to a clean image, and their training
train        the denoising loss that trains an EDM denoiser; the loop is `drbench.training`
exact        the posterior mean for a finite set of images, in closed form

Units: images are in [-1, 1] here ("network units"), so a noise level is `sigma_net = 2 * sigma` with `sigma`
the standard deviation in pixel units; `z_net = 2 * z - 1`. Nothing here clips a noisy image.
"""
