# syntax=docker/dockerfile:1
# An empty image with one static binary. `docker buildx build --platform linux/amd64,linux/arm64 .`
# builds each on its own architecture, or emulated; `cargo xtask dist` makes the same without Docker.
ARG RUST_VERSION=1.95.0
ARG ALPINE_VERSION=3.22

FROM rust:${RUST_VERSION}-alpine${ALPINE_VERSION} AS build
RUN apk add --no-cache ca-certificates git musl-dev
WORKDIR /lictor
COPY . .
# The image brings the toolchain; rust-toolchain.toml would have it fetched again.
RUN rm -f rust-toolchain.toml
ARG CARGO_AUDITABLE_VERSION=0.7.7
# One cache for each platform.
ARG TARGETPLATFORM
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    cargo install --locked cargo-auditable --version ${CARGO_AUDITABLE_VERSION}
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/lictor/target,id=target-${TARGETPLATFORM} \
    cargo auditable build --release --locked --package lictor --bin lictor \
    && install -D target/release/lictor /out/lictor

FROM scratch
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="lictor" \
      org.opencontainers.image.description="Keeps Consul true to Kubernetes" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/lictor /lictor
ENV PATH=/
USER 65532:65532
ENTRYPOINT ["/lictor"]
