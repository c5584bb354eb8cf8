# Made from deploy/images/recipes.go by `make gen`; edit that instead.
# Run `make build` first, then: docker build -t fastnet.dev/gateway:dev -f deploy/images/gateway.Dockerfile .
FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends iptables strongswan-charon strongswan-swanctl libcharon-extra-plugins libstrongswan-standard-plugins \
 && rm -rf /var/lib/apt/lists/*
COPY dist/bin/fastnet-gateway /fastnet-gateway
EXPOSE 9471/tcp
EXPOSE 51820/udp
EXPOSE 4500/udp
WORKDIR /
USER 0:0
ENTRYPOINT ["/fastnet-gateway"]
