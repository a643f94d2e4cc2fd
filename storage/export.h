// What the shared library shows: everything else is compiled hidden.
#ifndef WAVEKV_STORAGE_EXPORT_H_
#define WAVEKV_STORAGE_EXPORT_H_

#define WAVEKV_EXPORT __attribute__((visibility("default")))

#endif  // WAVEKV_STORAGE_EXPORT_H_
