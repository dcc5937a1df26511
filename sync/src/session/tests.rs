mod blobs;
mod branches;
mod convergence;
mod protocol;
mod world;
