// SPDX-License-Identifier: Apache-2.0

#include <cuda_runtime_api.h>

#define NAME_OF(error) \
    case error:        \
        return #error

char const* cudaGetErrorName(cudaError_t error) {
    switch (error) {
        NAME_OF(cudaSuccess);
        NAME_OF(cudaErrorInvalidValue);
        NAME_OF(cudaErrorMemoryAllocation);
        NAME_OF(cudaErrorInitializationError);
        NAME_OF(cudaErrorInvalidConfiguration);
        NAME_OF(cudaErrorInvalidDeviceFunction);
        NAME_OF(cudaErrorNoDevice);
        NAME_OF(cudaErrorNoKernelImageForDevice);
        NAME_OF(cudaErrorInvalidResourceHandle);
        NAME_OF(cudaErrorIllegalAddress);
        NAME_OF(cudaErrorLaunchOutOfResources);
        NAME_OF(cudaErrorMisalignedAddress);
        NAME_OF(cudaErrorLaunchFailure);
        NAME_OF(cudaErrorNotSupported);
        NAME_OF(cudaErrorUnknown);
    }
    return "unrecognized error code";
}

char const* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }
