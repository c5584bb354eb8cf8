# Made from deploy/images/recipes.go by `make gen`; edit that instead.
# Run `make build` first, then: docker build -t fastnet.dev/coredns:dev -f deploy/images/coredns.Dockerfile .
FROM debian:bookworm-slim AS prepare
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates libcap2-bin
COPY dist/bin/coredns /coredns
RUN setcap cap_net_bind_service=+ep /coredns

FROM scratch
COPY --from=prepare /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=prepare /coredns /coredns
EXPOSE 53/tcp
EXPOSE 53/udp
EXPOSE 9153/tcp
EXPOSE 8080/tcp
EXPOSE 8181/tcp
WORKDIR /
USER 65532:65532
ENTRYPOINT ["/coredns"]
