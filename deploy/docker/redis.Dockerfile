# Redis from Debian's packages, for machines without access to a registry. It replaces redis:8 in tests.
ARG BASE_IMAGE=debian:trixie-slim
FROM ${BASE_IMAGE}

RUN printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d \
    && apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends redis-server \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/* \
    && install -d -o redis -g redis /data

USER redis
WORKDIR /data
VOLUME /data
EXPOSE 6379
CMD ["redis-server", "--protected-mode", "no"]
