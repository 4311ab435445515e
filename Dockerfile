# The injector's image: its static binary, the small one that writes env files in pods, and the licences
# of their modules, on a base image without a shell.
#
#   make image DISTROLESS=REGISTRY/distroless IMAGE=REGISTRY/akv-injector:TAG
#
# Both base images are named by the digest of an index, which has a manifest for each platform. So a
# moved tag changes nothing, and a mirror cannot deliver other bytes. DISTROLESS is the location of
# the distroless project's images.
ARG DISTROLESS

FROM --platform=${BUILDPLATFORM} golang:1.26.8@sha256:6c2a5538f964f1c82f97ad14988bf05de100d922d159d0e398b54c7b0ca0c6c9 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
# .dockerignore lists what is copied.
COPY . .
ARG TARGETOS TARGETARCH VERSION=dev
RUN CGO_ENABLED=0 GOOS=${TARGETOS} GOARCH=${TARGETARCH} \
    go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=${VERSION}" -o bin/ . ./akv-env

FROM ${DISTROLESS:?}/static-debian13:nonroot@sha256:e2e927ec666bae08560abb3c55d0659eceabb657f56b6782ab500a9fc7f555e3
ARG VERSION=dev REVISION=unknown
LABEL org.opencontainers.image.title="akv-injector" \
      org.opencontainers.image.description="Identity and Key Vault secrets for pods on Azure Kubernetes Service, by annotations" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY LICENSE THIRD_PARTY_NOTICES /licenses/
COPY --from=build /src/bin/ /
USER 65532:65532
ENTRYPOINT ["/akv-injector"]
