# edge-infer for a Jetson. Build on the Jetson, or elsewhere with `docker buildx build --platform linux/arm64`.
#
# JetPack 6.1 and 6.2 (TensorRT 10.3, Python 3.10):
#   docker build -f jetson.Dockerfile -t mdconv-edge .
# JetPack 7.2 (TensorRT 10.16, Python 3.12), where a Jetson runs the standard arm64 image, which has no smaller sibling:
#   docker build -f jetson.Dockerfile -t mdconv-edge --build-arg PYTHON_VERSION=3.12 \
#     --build-arg DEVEL_IMAGE=nvcr.io/nvidia/tensorrt:26.05-py3 --build-arg RUNTIME_IMAGE=nvcr.io/nvidia/tensorrt:26.05-py3 .
# Run:
#   docker run --runtime nvidia -v "$PWD/bundle:/bundle:ro" -v "$PWD/inbox:/inbox:ro" -v mdconv-state:/state mdconv-edge \
#     serve --bundle /bundle --watch /inbox --state /state
ARG DEVEL_IMAGE=nvcr.io/nvidia/l4t-tensorrt:r10.3.0-devel
ARG RUNTIME_IMAGE=nvcr.io/nvidia/l4t-tensorrt:r10.3.0-runtime

# Compiles the plugin and PyCUDA, which has no wheels, and gathers everything in one virtual environment.
FROM ${DEVEL_IMAGE} AS builder
ARG PYTHON_VERSION=3.10
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        build-essential=12.* \
        cmake=3.* \
        "python${PYTHON_VERSION}-dev=${PYTHON_VERSION}.*" \
        "python${PYTHON_VERSION}-venv=${PYTHON_VERSION}.*" \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/mdconv-edge/bin:/usr/local/cuda/bin:$PATH
COPY . /src
# The plugin is part of the package; an image without it would be a mistake. TensorRT's Python module comes with the image,
# not from a package index, and goes along with the environment. It is found without being imported, since importing needs
# the device's own libraries. ONNX Runtime is for shadow mode and for the gate, which compare with float32 there.
RUN "/usr/bin/python${PYTHON_VERSION}" -m venv /opt/mdconv-edge \
    && pip install --no-cache-dir "/src[jetson,onnxruntime,serve,signing]" \
    && python -c 'from edge.plugin_library import find_plugin; print(find_plugin())' \
    && module="$("/usr/bin/python${PYTHON_VERSION}" -c \
        'import importlib.util; print(importlib.util.find_spec("tensorrt").submodule_search_locations[0])')" \
    && cp -r "$module" "/opt/mdconv-edge/lib/python${PYTHON_VERSION}/site-packages/"

FROM ${RUNTIME_IMAGE}
ARG PYTHON_VERSION=3.10
RUN apt-get update \
    && apt-get install -y --no-install-recommends "python${PYTHON_VERSION}=${PYTHON_VERSION}.*" \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 --groups video edge \
    && mkdir /state \
    && chown edge /state
COPY --from=builder /opt/mdconv-edge /opt/mdconv-edge
ENV PATH=/opt/mdconv-edge/bin:$PATH \
    MDCONV_EDGE_CACHE=/state/engines
USER 10001
VOLUME /state
ENTRYPOINT ["edge-infer"]
CMD ["--help"]
