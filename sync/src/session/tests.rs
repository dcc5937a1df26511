mod blobs;
mod convergence;
mod protocol;
mod world;
