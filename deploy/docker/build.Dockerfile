# A build image for machines without access to a registry: Debian with this machine's Rust toolchain. The toolchain's `bin` and
# `lib` are the build context.
ARG BASE_IMAGE=debian:trixie-slim
FROM ${BASE_IMAGE}
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends ca-certificates gcc libc6-dev make \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*
COPY bin/ /opt/rust/bin/
COPY lib/ /opt/rust/lib/
ENV CARGO_HOME=/opt/cargo PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
