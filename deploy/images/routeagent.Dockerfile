# Made from deploy/images/recipes.go by `make gen`; edit that instead.
# Run `make build` first, then: docker build -t fastnet.dev/routeagent:dev -f deploy/images/routeagent.Dockerfile .
FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends iptables \
 && rm -rf /var/lib/apt/lists/*
COPY dist/bin/fastnet-routeagent /fastnet-routeagent
EXPOSE 9472/tcp
WORKDIR /
USER 0:0
ENTRYPOINT ["/fastnet-routeagent"]
