# Made from deploy/images/recipes.go by `make gen`; edit that instead.
# Run `make build` first, then: docker build -t fastnet.dev/agent:dev -f deploy/images/agent.Dockerfile .
FROM debian:bookworm-slim AS prepare
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates libcap2-bin

FROM scratch
COPY --from=prepare /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY dist/bin/fastnet-agent /fastnet-agent
EXPOSE 9470/tcp
WORKDIR /
USER 65532:65532
ENTRYPOINT ["/fastnet-agent"]
