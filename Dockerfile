# The injector's image, for any Linux architecture that Go knows, with nothing but the binary inside:
#
#   docker build --build-arg VERSION="$(git describe --tags --always --dirty)" --tag akv-injector .

ARG GO_IMAGE=golang:1.26
ARG BASE_IMAGE=scratch

FROM --platform=${BUILDPLATFORM} ${GO_IMAGE} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY *.go ./
COPY certs certs
COPY controller controller
COPY webhook webhook
ARG TARGETOS TARGETARCH VERSION=dev
RUN CGO_ENABLED=0 GOOS=${TARGETOS} GOARCH=${TARGETARCH} \
    go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /akv-injector .

FROM ${BASE_IMAGE}
COPY --from=build /akv-injector /akv-injector
USER 65532:65532
ENTRYPOINT ["/akv-injector"]
