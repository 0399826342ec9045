"""Images over HTTP: uploads and results, DICOMweb STOW-RS, and the KServe v2 inference protocol."""
