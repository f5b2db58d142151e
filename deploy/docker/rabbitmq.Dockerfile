# RabbitMQ from Debian's packages, for machines without access to a registry. It replaces the official image in demo and tests.
ARG BASE_IMAGE=debian:trixie-slim
FROM ${BASE_IMAGE}

RUN printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d \
    && apt-get -o Acquire::Check-Valid-Until=false update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends rabbitmq-server \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/* \
    && echo '[rabbitmq_management,rabbitmq_prometheus].' >/etc/rabbitmq/enabled_plugins \
    && printf 'loopback_users = none\nlog.console = true\nlog.file = false\n' >/etc/rabbitmq/rabbitmq.conf \
    && rm -rf /var/lib/rabbitmq/* /var/lib/rabbitmq/.erlang.cookie \
    && chown -R rabbitmq:rabbitmq /var/lib/rabbitmq /var/log/rabbitmq /etc/rabbitmq

USER rabbitmq
ENV HOME=/var/lib/rabbitmq LANG=C.UTF-8 PATH=/usr/lib/rabbitmq/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
WORKDIR /var/lib/rabbitmq
# After all steps that write there: changes below a volume by a later step are lost.
VOLUME /var/lib/rabbitmq
EXPOSE 5672 15672 15692
CMD ["/usr/lib/rabbitmq/bin/rabbitmq-server"]
